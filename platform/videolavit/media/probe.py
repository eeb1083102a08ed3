"""Properties of a video, without decoding it."""

from dataclasses import dataclass

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from videolavit.sandbox.sendable import sendable

from .packets import is_discontinuous, packet_clock, repaired
from .settings import DecomposeSettings
from .source import VideoInput, open_video

LONG_SECONDS, LEAST_BYTES = 600.0, 1000
"""Length, in seconds, from which a header is believed only if the file has so many bytes for each second. A few bytes
can declare years, and each segment of them would be planned and tried."""


@sendable
@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, from the header of its container.

    Attributes:
        container: Name of the container format in libavformat.
        codec: Name of the codec in libavcodec, whichever of its decoders is used.
        width: Width of the coded frame, before rotation, in pixels.
        height: Height of the coded frame, before rotation, in pixels.
        seconds: Length, in seconds; None if it is unknown.
        frame_rate: Frames per second.
        num_frames: Number of frames by the header; 0 if it is unknown.
        pixel_format: Name of the pixel format in libavutil.
        bit_rate: Bits per second of the picture, or of the whole file if the header does not say; 0 if it is unknown.
    """

    container: str
    codec: str
    width: int
    height: int
    seconds: float | None
    frame_rate: float
    num_frames: int
    pixel_format: str = "yuv420p"
    bit_rate: int = 0


def probe(source: VideoInput, settings: DecomposeSettings | None = None) -> VideoInfo:
    """Reads the header of a video. Where it has no length to rely on, the packets are read too; nothing is decoded.

    Raises:
        MediaError: the source cannot be decomposed, as far as that can be known without decoding.
    """
    with open_video(source, settings or DecomposeSettings()) as (container, stream):
        seconds = _declared_seconds(container, stream)
        if seconds is None or (seconds > LONG_SECONDS and container.size < seconds * LEAST_BYTES):
            seconds = _read_seconds(container, stream)
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            seconds=seconds,
            frame_rate=float(stream.guessed_rate or 0),
            num_frames=stream.frames,
            pixel_format=stream.codec_context.pix_fmt or "",
            bit_rate=stream.bit_rate or container.bit_rate or 0,
        )


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    if container.format.name in _WITHOUT_LENGTH or is_discontinuous(container):
        return None
    first = (container.start_time or 0) / av.time_base
    if stream.duration and stream.time_base:
        late = 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base) - first
        return float(stream.duration * stream.time_base) + max(late, 0.0)
    if not container.duration:
        return None
    seconds = container.duration / av.time_base
    # In Matroska the duration is the time of the end, counted from zero.
    return seconds - first if container.format.name.startswith("matroska") and first < seconds else seconds


_WITHOUT_LENGTH = ("h264", "hevc", "mpegvideo", "obu")
"""Elementary streams, whose length libavformat guesses from the bit rate; the guess may be wrong by any factor."""


def _read_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Length by the packets. Two timestamps say nothing of a clock that may have jumped between them."""
    assert stream.time_base is not None
    count = end = 0
    for packet in repaired(container.demux(stream), packet_clock(container, stream)):
        if packet.size:
            count += 1
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
    # Without timestamps the guess may be twice the frame rate; the header of the codec has the right one.
    rate = float(stream.codec_context.framerate or stream.guessed_rate or 25)
    return float(end * stream.time_base) or count / rate or None
