"""Bad input: every fault becomes its own typed error."""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Isolate
from tests.media.videos import consume, ffmpeg, make, moving, outcome, outcome_and_memory, outline
from videolavit.media import DecomposeSettings, MediaError, errors, iter_frames, probe, reencode
from videolavit.media import source as source_module
from videolavit.sandbox.errors import ProcessDied, TimeLimitExceeded

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds small good files of several containers."""
    folder = tmp_path_factory.mktemp("bad")
    source = make(folder / "source.mp4", (*moving(seconds=2, rate="24"), *X264, "-g", "12"))
    for name, options in {
        "index_last.mp4": (),
        "index_first.mp4": ("-movflags", "+faststart"),
        "fragmented.mp4": ("-movflags", "frag_keyframe+empty_moov"),
        "good.mkv": (),
        "good.ts": (),
        "good.flv": (),
        "good.nut": (),
    }.items():
        ffmpeg("-i", source, "-c", "copy", *options, folder / name)
    for name, codec in {
        "good.avi": "mpeg4",
        "good.webm": "libvpx",
        "good.mpg": "mpeg2video",
        "good.asf": "wmv2",
    }.items():
        ffmpeg("-i", source, "-c:v", codec, "-b:v", "500k", folder / name)
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", folder / "sound.m4a")
    ffmpeg("-i", folder / "sound.m4a", "-c", "copy", folder / "sound.mp4")
    ffmpeg("-i", folder / "sound.m4a", folder / "sound.mkv")
    ffmpeg("-i", folder / "sound.m4a", folder / "sound.wav")
    ffmpeg("-i", folder / "sound.m4a", "-c:a", "libmp3lame", folder / "sound.mp3")
    for picture in ("picture.png", "picture.jpg", "picture.bmp", "picture.webp"):
        ffmpeg("-i", source, "-frames:v", "1", folder / picture)
    return folder


def assert_rejected(
    source: Any,
    kind: type[MediaError],
    message: str | None = None,
    settings: DecomposeSettings | None = None,
    *,
    header: bool = True,
) -> None:
    """Both entry points raise exactly this class, with a readable message; `probe` where the header tells."""
    with pytest.raises(MediaError, match=message) as caught:
        consume(iter_frames(source, settings))
    assert type(caught.value) is kind
    assert_readable(caught.value)
    if header:
        with pytest.raises(MediaError) as probed:
            probe(source, settings)
        assert type(probed.value) is kind
        assert_readable(probed.value)


def assert_readable(error: MediaError) -> None:
    text = str(error)
    assert 8 <= len(text) <= 300
    assert text.isprintable()
    assert not re.search(r"0x[0-9a-f]{6}|Errno -?\d{5,}|Traceback|<.* object", text)


# ---- files ------------------------------------------------------------------------------------------------------


def test_good_files_are_good(folder: Path) -> None:
    """The undamaged file of the other tests decodes."""
    for path in [*folder.glob("good.*"), *folder.glob("*.mp4")]:
        if path.stem != "sound":
            assert consume(iter_frames(path)) >= 11, path.name
            assert probe(path).seconds == pytest.approx(2, abs=0.2), path.name


def test_missing(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "nothing.mp4", errors.SourceMissing, "nothing.mp4")
    assert_rejected(str(tmp_path / "no_folder" / "nothing.mp4"), errors.SourceMissing)


def test_a_folder_is_unreadable(tmp_path: Path) -> None:
    assert_rejected(tmp_path, errors.SourceUnreadable)


def outcome_as_nobody(path: Path) -> str:
    """`outcome` in a process without the rights of the superuser, whom no permission bit stops."""
    code = (
        "import os, sys; from tests.media.videos import NOBODY, outcome\n"
        "if os.geteuid() == 0: os.setgroups([]), os.setgid(NOBODY), os.setuid(NOBODY)\n"
        "print(outcome(sys.argv[1]))"
    )
    words = [sys.executable, "-c", code, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_permission(folder: Path) -> None:
    """In a process without the superuser's rights; the same file is read there while its mode allows it."""
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        path = Path(public) / "video.mp4"
        path.write_bytes((folder / "source.mp4").read_bytes())
        path.chmod(0o644)
        assert outcome_as_nobody(path) == "ok"
        path.chmod(0)
        assert outcome_as_nobody(path) == "SourceForbidden"


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    assert_rejected(path, errors.SourceEmpty, "empty")
    assert_rejected(b"", errors.SourceEmpty, "empty")


@pytest.mark.parametrize("size", [1, 7, 100, 5_000, 200_000])
def test_random_bytes(size: int) -> None:
    """Large noise may look like sound to libavformat, which is another refusal of the same bytes."""
    for seed in range(4):
        noise = random.Random(seed).randbytes(size)
        for source in (noise, bytes(size), b"\xff" * size):
            with pytest.raises((errors.UnknownFormat, errors.ForbiddenFormat)) as caught:
                consume(iter_frames(source))
            assert_readable(caught.value)


@pytest.mark.parametrize("percent", [1, 3, 30, 60, 95, 99])
@pytest.mark.parametrize("name", ["index_last.mp4", "index_first.mp4", "fragmented.mp4", "good.mkv", "good.webm"])
def test_cut_file_whose_header_tells(folder: Path, tmp_path: Path, name: str, percent: int) -> None:
    data = (folder / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) * percent // 100])
    for source in (path, path.read_bytes()):
        assert_rejected(source, errors.CorruptVideo, "cut short|no picture size")


@pytest.mark.parametrize("percent", [30, 60, 95])
@pytest.mark.parametrize("name", ["good.avi", "good.flv"])
def test_cut_in_the_middle_of_a_packet(folder: Path, name: str, percent: int) -> None:
    data = (folder / name).read_bytes()
    assert_rejected(data[: len(data) * percent // 100], errors.CorruptVideo, "cut short", header=False)


@pytest.mark.parametrize("name", ["index_last.mp4", "index_first.mp4"])
def test_cut_behind_the_header_of_the_media_box(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    assert_rejected(data[: data.index(b"mdat") + 4], errors.CorruptVideo)


def test_cut_between_two_frames(folder: Path) -> None:
    """Without a half packet at the end, libavformat reports an ordinary end."""
    path = folder / "index_first.mp4"
    starts = _packet_positions(path)
    data = path.read_bytes()
    for start in (starts[len(starts) // 2], starts[-1]):
        assert_rejected(data[:start], errors.CorruptVideo, "cut short")


def _packet_positions(path: Path) -> list[int]:
    import av

    with av.open(str(path)) as container:
        return sorted(packet.pos for packet in container.demux(video=0) if packet.size)


def test_a_live_recording_declares_no_size(folder: Path, tmp_path: Path) -> None:
    """A Matroska file of unknown size cannot be called cut."""
    path = tmp_path / "live.mkv"
    with path.open("wb") as file:
        import imageio_ffmpeg

        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(folder / "good.mkv"), "-c", "copy"]
        subprocess.run([*command, "-live", "1", "-f", "matroska", "-"], stdout=file, check=True)
    assert outline(path) == outline(folder / "good.mkv")


def test_trailing_bytes_are_no_fault(folder: Path) -> None:
    for name in ("index_first.mp4", "index_last.mp4", "good.mkv", "good.avi"):
        data = (folder / name).read_bytes()
        assert outline(data + bytes(10_000)) == outline(data)


@pytest.mark.parametrize("name", ["sound.m4a", "sound.mp4", "sound.mkv"])
def test_sound_only(folder: Path, name: str) -> None:
    assert_rejected(folder / name, errors.NoVideoStream, "no video stream")


@pytest.mark.parametrize("name", ["sound.wav", "sound.mp3"])
def test_sound_file(folder: Path, name: str) -> None:
    assert_rejected(folder / name, errors.ForbiddenFormat)


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.bmp", "picture.webp"])
def test_picture(folder: Path, tmp_path: Path, name: str) -> None:
    disguised = tmp_path / f"{name}.mp4"
    disguised.write_bytes((folder / name).read_bytes())
    for source in (folder / name, disguised, disguised.read_bytes()):
        assert_rejected(source, errors.ForbiddenFormat, "picture")


def test_cover_picture_is_no_video(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cover.m4a"
    inputs = ("-i", folder / "sound.m4a", "-i", folder / "picture.png", "-map", "0", "-map", "1")
    ffmpeg(*inputs, "-c", "copy", "-disposition:v:0", "attached_pic", path)
    assert_rejected(path, errors.NoVideoStream)


@pytest.mark.parametrize("text", ["hello world\n" * 100, "<html><body>404 not found</body></html>", "{}", "\n"])
def test_text_named_as_video(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.mp4"
    path.write_text(text)
    assert_rejected(path, errors.UnknownFormat)


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_too_few_frames(folder: Path, tmp_path: Path, num_frames: int) -> None:
    path = tmp_path / "short.mp4"
    ffmpeg("-i", folder / "source.mp4", "-frames:v", str(num_frames), path)
    assert_rejected(path, errors.TooFewFrames, "at least 2", header=False)
    assert probe(path).num_frames == num_frames


def test_unknown_codec(folder: Path) -> None:
    data = (folder / "index_first.mp4").read_bytes()
    assert_rejected(data.replace(b"avc1", b"xq17"), errors.UnsupportedCodec)


def test_size_limit_comes_from_the_settings(folder: Path) -> None:
    for settings in (DecomposeSettings(max_width=159), DecomposeSettings(max_height=119)):
        assert_rejected(folder / "source.mp4", errors.FrameTooLarge, "160 x 120", settings)
    assert consume(iter_frames(folder / "source.mp4", DecomposeSettings(max_width=160, max_height=120))) >= 11


@pytest.mark.parametrize("codec", ["ffv1", "rawvideo"])
@pytest.mark.parametrize(("side", "expected"), [(16_000, "FrameTooLarge"), (20_000, "CorruptVideo")])
def test_huge_declared_size_is_refused_before_decoding(
    isolate: Isolate, tmp_path: Path, codec: str, side: int, expected: str
) -> None:
    """One such picture is hundreds of megabytes. At 20000 x 20000 libavformat already drops the size as impossible."""
    path = make(tmp_path / "huge.mkv", (*moving("320x300", seconds=0.3), "-c:v", codec))
    data = path.read_bytes()
    width_and_height = b"\xb0\x82" + (320).to_bytes(2, "big") + b"\xba\x82" + (300).to_bytes(2, "big")
    assert data.count(width_and_height) == 1
    huge = side.to_bytes(2, "big")
    path.write_bytes(data.replace(width_and_height, b"\xb0\x82" + huge + b"\xba\x82" + huge))
    started = time.monotonic()
    kind, grown = isolate(outcome_and_memory)(path.read_bytes(), DecomposeSettings(), time_limit=30)
    assert kind == expected
    assert grown < 100 << 20
    assert time.monotonic() - started < 10


def test_no_frame_rate() -> None:
    """libavformat puts some guess into every file that could be made, so the check is handed the answer 0/0."""
    context = SimpleNamespace(width=160, height=120, pix_fmt="yuv420p")
    for rate in (None, 0):
        stream: Any = SimpleNamespace(codec_context=context, guessed_rate=rate)
        with pytest.raises(errors.UnknownFrameRate, match="0/0"):
            source_module._check_stream(stream, DecomposeSettings())


def test_a_library_that_fails_without_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a decoder raises becomes a reject of its file, and no error of the run."""

    def broken(*_: object) -> None:
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr(reencode, "upright_filters", broken)
    assert_rejected(folder / "index_last.mp4", errors.UnexpectedError, "ValueError: 31 is not", header=False)


class _Failing:
    """A remote file whose storage fails after some reads."""

    name = "bucket/key.mp4"

    def __init__(self, data: bytes, error: Exception, good_reads: int) -> None:
        self._data, self._error, self._left, self._position = data, error, good_reads, 0

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise self._error
        end = len(self._data) if size < 0 else self._position + min(size, 2_000)
        start, self._position = self._position, min(end, len(self._data))
        return self._data[start : self._position]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = {0: 0, 1: self._position, 2: len(self._data)}[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


@pytest.mark.parametrize("good_reads", [0, 1, 2, 6])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(5, "Input/output error"), errors.SourceUnreadable),
        (TimeoutError("timed out"), errors.SourceUnreadable),
        (FileNotFoundError("the key is gone"), errors.SourceMissing),
        (PermissionError("Access Denied"), errors.SourceForbidden),
    ],
)
def test_storage_fails_while_reading(folder: Path, error: Exception, kind: type[MediaError], good_reads: int) -> None:
    data = (folder / "index_first.mp4").read_bytes()
    assert consume(iter_frames(_Failing(data, error, 10_000))) >= 11  # type: ignore[arg-type]
    with pytest.raises(MediaError) as caught:
        consume(iter_frames(_Failing(data, error, good_reads)))  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert_readable(caught.value)


def test_files_are_closed(folder: Path) -> None:
    """Also after an error, and after a consumer that stops early."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        frames = iter_frames(folder / "source.mp4")
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        assert_rejected(folder / "picture.png", errors.ForbiddenFormat)
        assert_rejected(folder / "sound.m4a", errors.NoVideoStream)
    assert len(list(descriptors.iterdir())) == before


def test_every_media_error_survives_the_pipe(isolate: Isolate, folder: Path) -> None:
    function = isolate(outline)
    for source, kind in (((folder / "picture.png").read_bytes(), errors.ForbiddenFormat), (b"", errors.SourceEmpty)):
        with pytest.raises(kind) as caught:
            function(source, time_limit=30)
        assert type(caught.value) is kind


# ---- damaged files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good files of a few kilobytes, so that damage hits every part of them."""
    folder = tmp_path_factory.mktemp("tiny")
    codecs = {
        "index_last.mp4": X264,
        "index_first.mp4": (*X264, "-movflags", "+faststart"),
        "h264.mkv": X264,
        "h264.ts": X264,
        "mpeg4.avi": ("-c:v", "mpeg4"),
        "mpeg4.nut": ("-c:v", "mpeg4"),
        "vp9.webm": ("-c:v", "libvpx-vp9", "-cpu-used", "8"),
        "flv1.flv": ("-c:v", "flv1"),
    }
    return {
        name: make(folder / name, (*moving("96x64", "12", 1.5), *codec)).read_bytes() for name, codec in codecs.items()
    }


def damaged(data: bytes, seed: int) -> bytes:
    """One of five kinds of damage, the same for the same seed."""
    choice, mutant = random.Random(seed), bytearray(data)
    kind = seed % 5
    start = choice.randrange(len(data))
    if kind == 0:  # scattered bytes
        for _ in range(choice.randint(1, 60)):
            mutant[choice.randrange(len(data))] = choice.randrange(256)
    elif kind == 1:  # the header
        for _ in range(choice.randint(1, 12)):
            mutant[choice.randrange(min(2_000, len(data)))] = choice.randrange(256)
    elif kind == 2:  # the end, where many indices are
        for _ in range(choice.randint(1, 12)):
            mutant[-1 - choice.randrange(min(2_000, len(data)))] = choice.randrange(256)
    elif kind == 3:  # a piece missing
        del mutant[start : start + choice.randint(1, 3_000)]
    else:  # a piece overwritten
        mutant[start : start + 500] = bytes([choice.choice((0, 255))]) * len(mutant[start : start + 500])
    return bytes(mutant)


NAMES = ("index_last.mp4", "index_first.mp4", "h264.mkv", "h264.ts", "mpeg4.avi", "mpeg4.nut", "vp9.webm", "flv1.flv")


@pytest.mark.parametrize("name", NAMES)
def test_damage_gives_frames_or_a_typed_error(tiny: dict[str, bytes], isolate: Isolate, name: str) -> None:
    """Any other exception of the child propagates and fails. The range bounds what a wild timestamp can cost."""
    function = isolate(outcome)
    outcomes: dict[str, int] = {}
    for seed in range(60):
        mutant = damaged(tiny[name], seed)
        assert mutant != tiny[name]
        try:
            kind = function(mutant, 0.6 * (seed % 2), 60.0, time_limit=5)
        except (ProcessDied, TimeLimitExceeded) as error:
            kind = type(error).__name__
        outcomes[kind] = outcomes.get(kind, 0) + 1
    kinds = [kind for parent in MediaError.__subclasses__() for kind in (parent, *parent.__subclasses__())]
    typed = {"ok", "ProcessDied", "TimeLimitExceeded"} | {kind.__name__ for kind in kinds}
    assert set(outcomes) <= typed
    assert outcomes.get("TimeLimitExceeded", 0) + outcomes.get("ProcessDied", 0) <= 2, outcomes
