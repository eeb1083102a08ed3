"""Frames of a video re-encoded as MPEG-4, with the picture types and motion vectors of the reference command.

    ffmpeg -i IN -filter:v fps=6 -b:v 8000k -c:v mpeg4 -threads 1

followed by a decode with motion-vector export, inside one process and without a temporary file. The output is
bit-exact. Three things make it fast: source frames that no frame refers to and that the fps filter drops are not
decoded; only I frames are reconstructed in full, since vectors need no pixels; only I frames are converted to RGB.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.sidedata.sidedata import Type as SideDataType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .errors import CorruptVideo, EncryptedVideo, StreamEnded, TooFewFrames
from .motion import motion_grid
from .packets import is_discontinuous, open_at
from .rotation import upright_filters
from .settings import DecomposeSettings
from .source import VideoInput, check_size
from .timestamps import MICROSECOND, FrameClock, constant_rate, rescale

_NO_TIMESTAMPS = 0x80
"""Flag AVFMT_NOTIMESTAMPS of libavformat."""


@dataclass(frozen=True, eq=False)
class DecomposedFrame:
    """One frame of the re-encoded stream.

    Attributes:
        index: Position in the re-encoded stream, from 0.
        type: `"I"` or `"P"`.
        seconds: Presentation time, in seconds from the start of the source.
        motion: int16 [ceil(height/16), ceil(width/16), 2], x first: forward displacement since the frame before,
            in half pixels; 0 where a block has no vector.
        num_vectors: Number of blocks with a vector, zero vectors included.
        image: uint8 [height, width, 3] RGB of an I frame; None for a P frame.
    """

    index: int
    type: str
    seconds: float
    motion: NDArray[np.int16]
    num_vectors: int
    image: NDArray[np.uint8] | None


def iter_frames(
    source: VideoInput,
    settings: DecomposeSettings | None = None,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Iterator[DecomposedFrame]:
    """Yields the frames of a re-encoded video, with bounded memory.

    A time range gives the frames that the reference command gives for `-ss START -i IN -t LENGTH`.

    Args:
        source: Path, bytes, or a seekable binary file object.
        settings: Frame rate, bit rate and limits.
        start_seconds: Start of the range, in seconds from the start of the source.
        end_seconds: End of the range, exclusive, in seconds; None for the end of the source.

    Raises:
        MediaError: the source cannot be decomposed; frames may have been yielded before.
    """
    settings = settings or DecomposeSettings()
    with open_at(source, settings, start_seconds) as (container, stream, packets):
        pictures = _sampled_pictures(container, stream, packets, settings, start_seconds, end_seconds)
        count = 0
        for frame in _reencoded(pictures, settings, start_seconds):
            count += 1
            yield frame
        if count < 2:
            raise TooFewFrames(f"{count} frame(s) at {settings.fps} fps; motion needs at least 2")


def iter_pictures(
    source: VideoInput,
    settings: DecomposeSettings | None = None,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames that `iter_frames` re-encodes: those of the source, at the frame rate of the settings.

    Returns:
        uint8 [height, width, 3] RGB, upright.

    Raises:
        MediaError: the source cannot be decoded; frames may have been yielded before.
    """
    settings = settings or DecomposeSettings()
    rgb = VideoReformatter()
    with open_at(source, settings, start_seconds) as (container, stream, packets):
        for _, picture in _sampled_pictures(container, stream, packets, settings, start_seconds, end_seconds):
            yield np.asarray(rgb.reformat(picture, format="rgb24").to_ndarray(), np.uint8)


# ---- source pictures on the clock of the output -------------------------------------------------------------------


def _sampled_pictures(
    container: InputContainer,
    stream: VideoStream,
    packets: Iterable[tuple[Packet[VideoStream], bool]],
    settings: DecomposeSettings,
    start_seconds: float,
    end_seconds: float | None,
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (tick, frame): upright frames in limited-range yuv420p, and their ticks from the start of the range."""
    decoded = _decoded_pictures(container, stream, packets, start_seconds)
    filters = _Filters(stream, settings)
    length = (
        None if end_seconds is None else Fraction(round((end_seconds - start_seconds) * av.time_base), av.time_base)
    )

    def on_ticks() -> Iterator[tuple[int, VideoFrame]]:
        for picture in decoded:
            yield from filters.push(picture)
        yield from filters.finish()

    pictures = on_ticks() if length is None else _trimmed(on_ticks(), rescale(1, length, Fraction(1, settings.fps)))
    for tick, picture in constant_rate(pictures, fill_start=len(container.streams) > 1):
        if length is not None and tick >= length * settings.fps:
            return
        yield tick, picture


def _trimmed(pictures: Iterable[tuple[int, VideoFrame]], ticks: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yields the frames of a number of ticks from the first frame on, as `-t` of the command counts them."""
    end = None
    for tick, picture in pictures:
        end = tick + ticks if end is None else end
        if tick >= end:
            return
        yield tick, picture


def _decoded_pictures(
    container: InputContainer,
    stream: VideoStream,
    packets: Iterable[tuple[Packet[VideoStream], bool]],
    start_seconds: float,
) -> Iterator[VideoFrame]:
    """Yields decoded frames with repaired timestamps from the start of a range; none from before a later start.

    A recording of a broadcast begins anywhere, so that its first packets may be undecodable, and a packet at a join is
    marked as damaged although nothing is missing; damage is what the decoder had to guess. In any other format a
    marked packet means that the file is not what was written.

    Raises:
        StreamEnded: the last frame is shown before a later start, and no packet lacked or lost its time, which may be
            that of a frame behind it.
    """
    assert stream.time_base is not None
    context = stream.codec_context
    context.thread_count, context.thread_type = 1, "NONE"
    clock = FrameClock(
        time_base=stream.time_base,
        guessed_rate=stream.guessed_rate,
        codec_rate=context.framerate or None,
        first_pts=rescale(-round(start_seconds * av.time_base), MICROSECOND, stream.time_base),
        timestamps_unreliable=bool(container.format.flags & _NO_TIMESTAMPS),
    )
    is_broadcast = is_discontinuous(container)
    decoded_any = reached = False
    is_timed = True
    for packet, droppable in packets:
        if packet.is_corrupt and not is_broadcast:
            raise CorruptVideo("a packet is damaged or cut short")
        if packet.has_sidedata("encryption_info"):
            raise EncryptedVideo("the video is encrypted")
        is_timed &= not packet.size or packet.pts is not None
        context.skip_frame = "NONREF" if droppable else "DEFAULT"
        try:
            frames = context.decode(packet if packet.size else None)
        except av.error.InvalidDataError:
            if decoded_any or not is_broadcast:
                raise
            continue
        for frame in frames:
            decoded_any = True
            frame.pts, frame.duration = clock.stamp(frame.pts, frame.dts, frame.duration)
            if frame.pts < 0 and start_seconds:
                continue
            if frame.is_corrupt and is_broadcast:
                raise CorruptVideo("a frame is damaged: the decoder guessed a part of it")
            reached = True
            yield frame
    if not decoded_any:
        raise CorruptVideo("the stream decodes to no frame at all")
    if start_seconds and is_timed and not reached:
        raise StreamEnded.before(start_seconds)


class _Filters:
    """Filters for frame rate, rotation and pixel format.

    The graph is built for the first frame, and anew when a later one has another form, as the command does. The size
    of the output stays that of the first frame.
    """

    def __init__(self, stream: VideoStream, settings: DecomposeSettings) -> None:
        self._stream = stream
        self._settings = settings
        self._graph: Graph | None = None
        self._form: tuple[object, ...] = ()
        self._output_size: tuple[int, int] | None = None

    def push(self, picture: VideoFrame) -> Iterator[tuple[int, VideoFrame]]:
        form = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        if form != self._form:
            yield from self.finish()
            self._graph, self._form = self._build(picture), form
        assert self._graph is not None
        self._graph.vpush(picture)
        yield from self._pull(self._graph)

    def finish(self) -> Iterator[tuple[int, VideoFrame]]:
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull(self._graph)

    def _pull(self, graph: Graph) -> Iterator[tuple[int, VideoFrame]]:
        while True:
            try:
                picture = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert picture.pts is not None
            self._output_size = self._output_size or (picture.width, picture.height)
            yield picture.pts, picture

    def _build(self, picture: VideoFrame) -> Graph:
        check_size(picture.width, picture.height, self._settings)
        graph = Graph()
        graph.threads = 1
        aspect = self._stream.sample_aspect_ratio or Fraction(0, 1)
        rate = self._stream.guessed_rate or Fraction(0, 1)
        nodes = [
            graph.add(
                "buffer",
                video_size=f"{picture.width}x{picture.height}",
                pix_fmt=picture.format.name,
                time_base=str(self._stream.time_base),
                pixel_aspect=f"{aspect.numerator}/{aspect.denominator}",
                frame_rate=f"{rate.numerator}/{rate.denominator}",
                colorspace=str(int(picture.colorspace)),
                range=str(int(picture.color_range)),
            )
        ]
        nodes += [graph.add(name, args) for name, args in upright_filters(picture)]
        nodes.append(graph.add("fps", str(self._settings.fps)))
        if self._output_size:
            width, height = self._output_size
            nodes.append(graph.add("scale", f"{width}:{height}:flags=bicubic"))
        nodes.append(graph.add("format", "pix_fmts=yuv420p:color_ranges=tv"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes)
        graph.configure()
        return graph


# ---- encode and read back -----------------------------------------------------------------------------------------


def _reencoded(
    pictures: Iterable[tuple[int, VideoFrame]], settings: DecomposeSettings, start_seconds: float
) -> Iterator[DecomposedFrame]:
    encoder, reader = None, None
    for tick, picture in pictures:
        if encoder is None or reader is None:
            encoder = _encoder(picture, settings)
            reader = _StreamReader(settings, start_seconds + tick / settings.fps, encoder)
        # The encoder would take over the picture types of the source.
        picture.pict_type = PictureType.NONE
        picture.pts, picture.time_base = tick, Fraction(1, settings.fps)
        yield from reader.read(encoder.encode(picture))
    if encoder is not None and reader is not None:
        yield from reader.read(encoder.encode(None))


def _encoder(picture: VideoFrame, settings: DecomposeSettings) -> VideoCodecContext:
    encoder: Any = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, settings.fps), Fraction(settings.fps)
    encoder.bit_rate = settings.bit_rate
    # The encoder cuts the picture into one slice per thread, and its vectors change with the slices.
    encoder.thread_count, encoder.thread_type = 1, "NONE"
    return encoder  # type: ignore[no-any-return]


class _StreamReader:
    """Reads the encoder's packets back: picture types and vectors of all frames, pixels of I frames.

    Vectors are in the bitstream whether or not pixels are reconstructed, so they come from a decoder at an eighth of
    the resolution; a second one at full resolution sees only I frames, which need no others.
    """

    def __init__(self, settings: DecomposeSettings, start_seconds: float, encoder: VideoCodecContext) -> None:
        self._vectors = _mpeg4_decoder({"flags2": "+export_mvs", "lowres": "3", "skip_idct": "all"})
        self._pixels = _mpeg4_decoder({})
        self._rgb = VideoReformatter()
        self._width, self._height = encoder.width, encoder.height
        self._fps, self._start = settings.fps, start_seconds
        self._count = 0

    def read(self, packets: Iterable[Packet[Any]]) -> Iterator[DecomposedFrame]:
        for packet in packets:
            (frame,) = self._vectors.decode(packet)  # no B frames, so the decoder has no delay
            is_key = frame.pict_type == PictureType.I
            motion, num_vectors = motion_grid(_vectors(frame), self._height, self._width)
            yield DecomposedFrame(
                index=self._count,
                type="I" if is_key else "P",
                seconds=self._start + self._count / self._fps,
                motion=motion,
                num_vectors=num_vectors,
                image=self._image(packet) if is_key else None,
            )
            self._count += 1
            if is_key:
                del frame
                gc.collect(0)  # a frame whose side data was read is in a reference cycle with it (PyAV 18)

    def _image(self, packet: Packet[Any]) -> NDArray[np.uint8]:
        (frame,) = self._pixels.decode(packet)
        return np.asarray(self._rgb.reformat(frame, format="rgb24").to_ndarray(), np.uint8)


def _mpeg4_decoder(options: dict[str, str]) -> Any:
    decoder: Any = av.CodecContext.create("mpeg4", "r")
    decoder.thread_count, decoder.thread_type = 1, "NONE"
    decoder.options = options
    return decoder


def _vectors(frame: VideoFrame) -> NDArray[Any] | None:
    side_data: Any = frame.side_data
    try:
        return side_data[SideDataType.MOTION_VECTORS].to_ndarray()  # type: ignore[no-any-return]
    except KeyError:
        return None
