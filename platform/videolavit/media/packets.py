"""Packets of a time range, and which of them need no decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .settings import DecomposeSettings
from .source import VideoInput, open_video
from .timestamps import rescale

DROPPABLE_CODECS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp8"})
"""Codecs whose decoders can skip frames that no other frame refers to (`skip_frame` NONREF)."""

LOOKAHEAD = 32
"""Number of packets read ahead to find a later frame on the same tick; larger than any reordering depth."""


@contextmanager
def open_at(
    source: VideoInput, settings: DecomposeSettings, start_seconds: float
) -> Iterator[tuple[InputContainer, VideoStream, Iterator[Packet[VideoStream]]]]:
    """Opens a source, with its packets from the last key frame before the start of a range.

    Where seeking fails or leads past the start, the source is opened again, with all its packets: not every demuxer
    can return to its first packet.
    """
    if start_seconds > 0:
        with open_video(source, settings) as (container, stream):
            packets = _packets_from(container, stream, origin_us(container, start_seconds))
            if packets is not None:
                yield container, stream, packets
                return
    with open_video(source, settings) as (container, stream):
        yield container, stream, container.demux(stream)


def origin_us(container: InputContainer, start_seconds: float) -> int:
    """Returns the start of a range on the container's clock, in microseconds."""
    return (container.start_time or 0) + round(start_seconds * av.time_base)


def _packets_from(
    container: InputContainer, stream: VideoStream, target_us: int
) -> Iterator[Packet[VideoStream]] | None:
    """Returns the packets from a key frame at or before the target; None where seeking finds no such frame.

    In streams with reordered frames the target is moved a little earlier, because an index by decoding time may
    otherwise lead to a key frame that is shown after the target; the `ffmpeg` command does the same.
    """
    margin = 3 * av.time_base // 23 if stream.codec_context.has_b_frames else 0
    try:
        container.seek(target_us - margin, backward=True)
        packets = container.demux(stream)
        first = next(packets)
    except av.error.FFmpegError:
        return None  # a format that cannot seek, or nothing before the target
    if first.is_keyframe and first.pts is not None and first.pts * first.time_base * av.time_base <= target_us:
        return chain((first,), packets)
    return None


def mark_droppable(
    packets: Iterable[Packet[VideoStream]], stream: VideoStream, settings: DecomposeSettings, origin: int
) -> Iterator[tuple[Packet[VideoStream], bool]]:
    """Yields (packet, droppable), where droppable means that a later frame falls on the same tick of the output.

    The fps filter keeps only the last frame of a tick. The decoder skips a droppable frame only if no other frame
    refers to it.

    Args:
        origin: Timestamp of the first tick, in units of the stream.
    """
    if stream.codec_context.name not in DROPPABLE_CODECS:
        yield from ((packet, False) for packet in packets)
        return
    lookahead = _Lookahead(stream, settings, origin)
    for packet in packets:
        lookahead.add(packet)
        if len(lookahead) > LOOKAHEAD:
            yield lookahead.release()
    while len(lookahead):
        packet, droppable = lookahead.release()
        # If the duration of a packet is not reliable, that of the last frame is computed from the frame before.
        yield packet, droppable and (packet.duration or 0) > 1


class _Lookahead:
    """Queue of packets before the decoder, with the last timestamp on each tick of theirs."""

    def __init__(self, stream: VideoStream, settings: DecomposeSettings, origin: int) -> None:
        assert stream.time_base is not None
        self._time_base, self._origin, self._tick_length = stream.time_base, origin, Fraction(1, settings.fps)
        self._waiting: deque[tuple[Packet[VideoStream], int | None]] = deque()
        self._last_on_tick: dict[int, int] = {}
        self._last_dts: int | None = None
        self._in_order = True

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, packet: Packet[VideoStream]) -> None:
        tick = None
        went_back = packet.dts is not None and self._last_dts is not None and packet.dts <= self._last_dts
        if packet.size and (packet.pts is None or went_back):
            self._in_order = False  # timestamps that need repair say nothing about what the filter will drop
        elif packet.size and not packet.is_discard:
            assert packet.pts is not None
            tick = rescale(packet.pts - self._origin, self._time_base, self._tick_length)
            self._last_on_tick[tick] = max(packet.pts, self._last_on_tick.get(tick, packet.pts))
        self._last_dts = self._last_dts if packet.dts is None else packet.dts
        self._waiting.append((packet, tick))
        if len(self._last_on_tick) > 8 * LOOKAHEAD:
            # Removing a tick is safe: each of its frames is then taken for the last, and decoded.
            self._last_on_tick = {tick: self._last_on_tick[tick] for _, tick in self._waiting if tick is not None}

    def release(self) -> tuple[Packet[VideoStream], bool]:
        packet, tick = self._waiting.popleft()
        if not self._in_order or tick is None or packet.pts is None or packet.is_keyframe:
            return packet, False
        return packet, self._last_on_tick[tick] > packet.pts
