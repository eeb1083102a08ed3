"""Odd but good files: the decomposition equals the reference command bit for bit.

Bits are equal between the library's codec build and the ffmpeg binary's, so a difference here is one of timing, picture
selection, rotation or colour handling.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from tests.media.videos import make, moving, outline, outline_on_one_cpu, reference, without_default_duration
from videolavit.media import iter_frames, packets, probe, reencode
from videolavit.media.errors import TooFewFrames
from videolavit.sandbox.call import IsolatedFunction

X264 = ("-c:v", "libx264", "-preset", "veryfast")
B_PYRAMID = (*moving("162x122"), *X264, "-x264-params", "b-pyramid=normal:bframes=3:b-adapt=0")


def _filtered(filters: str, *codec: str, rate: str = "30") -> tuple[str, ...]:
    return (*moving(rate=rate), "-vf", filters, *codec)


ALPHA = "testsrc2=size=160x120:rate=12:duration=3:alpha=90"
HDR10 = (
    "log-level=none:hdr10=1:max-cll=1000,400:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:"
    "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
)

SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    # picture order
    "b_pyramid.mp4": (B_PYRAMID,),
    "b_pyramid.mkv": (B_PYRAMID,),
    "eight_b_frames.mkv": ((*moving(), *X264, "-x264-params", "b-pyramid=none:bframes=8:b-adapt=0:ref=8"),),
    "open_gop.mp4": ((*moving(), *X264, "-x264-params", "open-gop=1:keyint=20:bframes=5"),),
    "hevc.mp4": ((*moving(), "-c:v", "libx265", "-x265-params", "log-level=none:bframes=6"),),
    "no_b_frames.mp4": ((*moving(), *X264, "-bf", "0", "-refs", "1"),),
    # formats
    "mpeg2.ts": ((*moving(), "-c:v", "mpeg2video", "-bf", "2"),),
    "mpeg2.mpg": ((*moving(), "-c:v", "mpeg2video", "-bf", "2"),),
    "mpeg4.avi": ((*moving(), "-c:v", "mpeg4", "-bf", "2", "-q:v", "3"),),
    "vp8.webm": ((*moving(), "-c:v", "libvpx", "-b:v", "1M", "-deadline", "realtime"),),
    "vp9.webm": ((*moving(), "-c:v", "libvpx-vp9", "-b:v", "1M", "-cpu-used", "8", "-deadline", "realtime"),),
    "mjpeg.avi": ((*moving(), "-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"),),
    "h264.ts": ((*moving(), *X264, "-bf", "3"),),
    "flv1.flv": ((*moving(), "-c:v", "flv1", "-b:v", "1M"),),
    "wmv2.asf": ((*moving(), "-c:v", "wmv2", "-b:v", "1M"),),
    "theora.ogv": ((*moving(), "-c:v", "libtheora", "-q:v", "7"),),
    "prores.mov": ((*moving(rate="24"), "-c:v", "prores_ks"),),
    "fragmented.mp4": ((*moving(), *X264, "-movflags", "frag_keyframe+empty_moov", "-g", "20"),),
    # missing timestamps
    "raw.h264": ((*moving(), *X264, "-bf", "3"),),
    "raw.hevc": ((*moving(), "-c:v", "libx265", "-x265-params", "log-level=none"),),
    "h264_without_dts.avi": ((*moving(), *X264, "-bf", "2"),),
    # time
    "variable_rate.mkv": (_filtered("select='not(mod(n,7))+lt(mod(n,50),9)'", "-fps_mode", "vfr", *X264, rate="60"),),
    "variable_rate.mp4": (_filtered("select='not(mod(n,7))+lt(mod(n,50),9)'", "-fps_mode", "vfr", *X264, rate="60"),),
    "two_per_second.mp4": ((*moving(rate="2", seconds=5), *X264),),
    "thirteen_per_ten_seconds.mkv": ((*moving(rate="13/10", seconds=8), *X264),),
    "ntsc.mp4": ((*moving(rate="30000/1001"), *X264),),
    "edit_list_negative.mp4": ((*moving(), *X264, "-output_ts_offset", "-0.7", "-avoid_negative_ts", "disabled"),),
    "negative.mkv": ((*moving(), *X264, "-output_ts_offset", "-0.7", "-avoid_negative_ts", "disabled"),),
    "offset.mkv": ((*moving(), *X264, "-output_ts_offset", "3.21"),),
    "late_video.mkv": (("-f", "lavfi", "-i", "sine=duration=3", "-itsoffset", "1.3", *moving(), *X264),),
    "late_video.mp4": (("-f", "lavfi", "-i", "sine=duration=3", "-itsoffset", "0.9", *moving(), *X264),),
    "edit_list_cut.mp4": (B_PYRAMID, ("-ss", "1.37", "-i", "{}", "-c", "copy")),
    "edit_list_open_gop.mp4": (
        (*moving(), *X264, "-x264-params", "open-gop=1:keyint=20:bframes=5"),
        ("-ss", "1.37", "-i", "{}", "-c", "copy"),
    ),
    "cut.mkv": (B_PYRAMID, ("-ss", "1.37", "-i", "{}", "-c", "copy")),
    # picture shape and rotation
    "odd_size.mkv": ((*moving("161x123"), "-c:v", "ffv1"),),
    "odd_size_444.mp4": ((*moving("161x123", rate="24"), *X264, "-pix_fmt", "yuv444p"),),
    "wide_pixels.mp4": (_filtered("setsar=4/3", *X264),),
    **{
        f"rotated_{angle}.mp4": (B_PYRAMID, ("-display_rotation", angle, "-i", "{}", "-c", "copy"))
        for angle in ("90", "180", "270", "45", "-90")
    },
    "flipped_h.mp4": (B_PYRAMID, ("-display_hflip", "-i", "{}", "-c", "copy")),
    "flipped_v.mp4": (B_PYRAMID, ("-display_vflip", "-i", "{}", "-c", "copy")),
    # colour
    "full_range.mp4": (_filtered("scale=out_range=pc", *X264, "-pix_fmt", "yuv420p", "-color_range", "pc"),),
    "bt2020.mp4": ((*moving(), *X264, "-colorspace", "bt2020nc", "-pix_fmt", "yuv420p"),),
    "ten_bit.mp4": ((*moving(), *X264, "-pix_fmt", "yuv420p10le"),),
    "yuv422.mkv": ((*moving(), "-c:v", "ffv1", "-pix_fmt", "yuv422p"),),
    "rgb.mkv": ((*moving(), "-c:v", "libx264rgb", "-preset", "veryfast"),),
    "grey.mkv": ((*moving(), "-c:v", "ffv1", "-pix_fmt", "gray"),),
    "palette.avi": ((*moving(rate="12"), "-c:v", "rawvideo", "-pix_fmt", "bgr24"),),
    "interlaced.mkv": ((*moving("160x128", rate="25"), *X264, "-x264-params", "interlaced=1:bframes=3"),),
    "interlaced.mpg": (
        (*moving("160x128", rate="25"), "-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-bf", "2", "-q:v", "4"),
    ),
    "alpha.webm": (("-f", "lavfi", "-i", ALPHA, "-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0"),),
    "alpha.mov": (("-f", "lavfi", "-i", ALPHA, "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"),),
    "hdr10.mp4": ((*moving(), "-c:v", "libx265", "-x265-params", HDR10, "-pix_fmt", "yuv420p10le"),),
    "telecine.mpg": (_filtered("scale=160:128,telecine", "-c:v", "mpeg2video", "-q:v", "4", rate="24000/1001"),),
    # pictures that move
    "moving.gif": (moving(rate="12"),),
    "moving.apng": ((*moving(rate="12"), "-f", "apng"),),
    # several streams
    "two_videos.mkv": ((*moving("96x64"), *moving("192x128"), "-map", "0", "-map", "1", *X264, "-disposition", "0"),),
    "small_default.mkv": (
        (
            *(*moving("192x128"), *moving("96x64"), "-map", "0", "-map", "1", *X264),
            *("-disposition:v:0", "0", "-disposition:v:1", "default"),
        ),
    ),
    "audio_longer.mp4": (("-f", "lavfi", "-i", "sine=duration=5", *moving(), *X264),),
}

RANGED = (
    "b_pyramid.mp4",
    "open_gop.mp4",
    "hevc.mp4",
    "variable_rate.mkv",
    "vp9.webm",
    "mpeg4.avi",
    "mjpeg.avi",
    "offset.mkv",
    "two_per_second.mp4",
    "thirteen_per_ten_seconds.mkv",
    "late_video.mkv",
    "late_video.mp4",
    "fragmented.mp4",
    "rotated_90.mp4",
    "odd_size.mkv",
    "wmv2.asf",
    "flv1.flv",
)
RANGES = ((0.0, 1.5), (0.35, 1.5), (1.0, 2.0), (1.37, 2.6), (2.2, None))

WITHOUT_INDEX = ("mpeg2.ts", "mpeg2.mpg", "h264.ts", "raw.h264", "raw.hevc", "negative.mkv", "interlaced.mpg")
"""Formats in which the command itself seeks to a wrong place, or to none."""

Videos = Callable[[str], Path]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    """Makes a file of SOURCES on first use."""
    folder = tmp_path_factory.mktemp("odd")

    def made(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make(path, *SOURCES[name])

    return made


@pytest.mark.parametrize("name", SOURCES)
def test_equals_the_reference_command(video: Videos, name: str) -> None:
    path = video(name)
    expected = reference(path)
    assert len(expected.types) >= 8
    assert outline(path) == expected


@pytest.mark.parametrize("name", SOURCES)
def test_probed_length_is_that_of_the_frames(video: Videos, name: str) -> None:
    """Long videos are cut by the probed length, so it may not be wrong by a factor."""
    path = video(name)
    assert probe(path).seconds == pytest.approx(len(outline(path).types) / 6, abs=0.4)


@pytest.mark.parametrize("name", RANGED)
def test_a_range_equals_the_reference_command_on_it(video: Videos, name: str) -> None:
    path = video(name)
    for start, end in RANGES:
        seek = ("-ss", str(start)) if start else ()
        length = () if end is None else ("-t", f"{end - start:g}")
        expected = reference(path, seek, length)
        assert len(expected.types) >= 2, (start, end)
        assert outline(path, start, end) == expected, (start, end)


@pytest.mark.parametrize("name", WITHOUT_INDEX)
def test_a_range_of_a_stream_without_index_is_exact(video: Videos, name: str) -> None:
    """The command decodes everything and drops what lies before the range (`-ss` behind `-i`)."""
    path = video(name)
    for start, end in ((1.0, 2.0), (1.5, None)):
        length = () if end is None else ("-t", f"{end - start:g}")
        expected = reference(path, after=("-ss", str(start), *length))
        assert len(expected.types) >= 4
        assert outline(path, start, end) == expected


@pytest.mark.parametrize("name", ["changes.ts", "changes.mpg", "changes.h264"])
def test_size_and_format_that_change_in_the_middle(tmp_path: Path, name: str) -> None:
    """Later pictures are scaled to the size of the first; the filters start anew for each form."""
    codec = ("-c:v", "mpeg2video", "-q:v", "3") if name.endswith("mpg") else X264
    forms = (("160x120", "yuv420p"), ("176x144", "yuv422p" if codec is X264 else "yuv420p"), ("160x120", "yuv420p"))
    parts = [
        make(tmp_path / f"{number}-{name}", (*moving(size, seconds=1), *codec, "-pix_fmt", pixels)).read_bytes()
        for number, (size, pixels) in enumerate(forms)
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(parts))
    expected = reference(path)
    assert len(expected.types) >= 16
    assert outline(path) == expected


def test_side_data_without_a_name(tmp_path: Path) -> None:
    """Exif in the frames of a camera's Motion JPEG; PyAV's table of side data lacks it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    stream = tmp_path / "camera.mjpeg"
    with stream.open("wb") as file:
        for number in range(12):
            picture = Image.new("RGB", (160, 120))
            picture.paste((255, 80, 0), (number * 8, 20, number * 8 + 40, 60))
            picture.save(file, "JPEG", exif=exif.tobytes())
    path = make(tmp_path / "camera.avi", ("-f", "mjpeg", "-framerate", "12", "-i", str(stream), "-c", "copy"))
    with av.open(str(path)) as container, pytest.raises(ValueError):
        _ = next(container.decode(video=0)).side_data
    assert outline(path) == reference(path)


def test_ranges_behind_the_end_have_too_few_frames(video: Videos) -> None:
    for name in ("b_pyramid.mp4", "negative.mkv", "raw.h264"):
        with pytest.raises(TooFewFrames):
            outline(video(name), 100.0, 120.0)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "slow.h264"), ("libx265", "slow.hevc"), ("mpeg4", "slow.m4v")])
def test_probed_length_of_an_elementary_stream(tmp_path: Path, codec: str, name: str) -> None:
    path = make(tmp_path / name, (*moving(rate="12"), "-c:v", codec))
    assert probe(path).seconds == pytest.approx(3, abs=0.2)
    assert outline(path) == reference(path)


def test_no_declared_frame_rate(video: Videos, tmp_path: Path) -> None:
    """Without a declared rate, the timestamps of the packets decide, as for the command."""
    path = tmp_path / "no_rate.mkv"
    path.write_bytes(without_default_duration(video("b_pyramid.mkv").read_bytes()))
    assert outline(path) == reference(path)


@pytest.mark.parametrize("name", ["b_pyramid.mp4", "cut.mkv", "raw.h264", "h264.ts", "mpeg4.avi"])
def test_every_way_to_hand_a_file_over_gives_the_same(video: Videos, name: str) -> None:
    path = video(name)
    expected = outline(path)
    assert outline(path) == expected, "a second run"
    assert outline(str(path)) == expected
    assert outline(path.read_bytes()) == expected
    assert outline(io.BytesIO(path.read_bytes())) == expected
    with path.open("rb") as file:
        file.seek(100)
        assert outline(file) == expected, "a file object that was read from before"


@pytest.mark.parametrize("name", ["b_pyramid.mp4", "hevc.mp4", "vp9.webm"])
def test_processes_and_processors_do_not_matter(video: Videos, name: str) -> None:
    path = video(name)
    expected = outline(path)
    for function, source in ((outline, path.read_bytes()), (outline_on_one_cpu, path.read_bytes())):
        isolated = IsolatedFunction(function)
        assert isolated(source, time_limit=60) == expected
        isolated.close()


DROPPING = (
    "b_pyramid.mp4",
    "eight_b_frames.mkv",
    "open_gop.mp4",
    "hevc.mp4",
    "mpeg2.ts",
    "h264.ts",
    "variable_rate.mkv",
    "offset.mkv",
)
"""Sources with frames to which no other refers, and with timestamps to trust."""


@pytest.mark.parametrize("name", DROPPING)
def test_frames_that_are_skipped_change_nothing(video: Videos, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(name)
    skipping, decoded = outline(path), _decoded_frames(path, monkeypatch)
    monkeypatch.setattr(packets, "DROPPABLE_CODECS", frozenset())
    assert outline(path) == skipping
    assert decoded < 0.75 * _decoded_frames(path, monkeypatch)


@pytest.mark.parametrize("num_frames", [60, 61, 62, 67, 71])
@pytest.mark.parametrize("rate", ["24", "30"])
def test_skipped_frames_do_not_stretch_the_last_one(tmp_path: Path, rate: str, num_frames: int) -> None:
    """With one clock unit a frame, the length of the last frame is guessed from the one before it."""
    arguments = (*moving(rate=rate), "-frames:v", str(num_frames), *X264)
    b_frames = ("-x264-params", "b-pyramid=none:bframes=6:b-adapt=0", "-video_track_timescale", rate)
    path = make(tmp_path / "coarse.mp4", (*arguments, *b_frames))
    assert outline(path) == reference(path)


def _decoded_frames(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of source frames that reach the filters."""
    count = 0

    class Counting(reencode._Filters):
        def push(self, picture: VideoFrame) -> Iterator[tuple[int, VideoFrame]]:
            nonlocal count
            count += 1
            return super().push(picture)

    with monkeypatch.context() as patch:
        patch.setattr(reencode, "_Filters", Counting)
        outline(path)
    return count


def test_frame_times_count_from_the_source_start(video: Videos) -> None:
    """A range's frames carry the times of the source, also where its clock starts elsewhere."""
    for name in ("offset.mkv", "negative.mkv", "b_pyramid.mp4", "h264.ts"):
        seconds = [frame.seconds for frame in iter_frames(video(name), start_seconds=1.0, end_seconds=2.0)]
        assert seconds == pytest.approx([1 + index / 6 for index in range(6)], abs=0.09), name
