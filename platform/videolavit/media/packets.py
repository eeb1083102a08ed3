"""The packets of a time range, and which of them need no decoding."""

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
"""Decoders that leave out a frame to which no other refers when asked to (`skip_frame` NONREF)."""

LOOKAHEAD = 32
"""Packets read ahead to know whether a later frame falls on the same tick; more than any reordering depth."""


@contextmanager
def open_at(
    source: VideoInput, settings: DecomposeSettings, start_seconds: float
) -> Iterator[tuple[InputContainer, VideoStream, Iterator[Packet[VideoStream]]]]:
    """Opens a source with its packets from a key frame from which the start can be decoded, or with all of them.

    Where seeking fails or lands too late, the source is opened anew: not every demuxer finds back to its first packet.
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
    """The start of a range on the container's clock, in microseconds."""
    return (container.start_time or 0) + round(start_seconds * av.time_base)


def _packets_from(
    container: InputContainer, stream: VideoStream, target_us: int
) -> Iterator[Packet[VideoStream]] | None:
    """Packets from a key frame that is shown at or before the target; None where seeking finds no such frame.

    Streams with reordered frames are sought a little earlier, because an index by decoding time may otherwise lead
    to a key frame that is shown after the target; the command does the same.
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
    """Yields (packet, droppable): droppable when a later frame falls on the same tick of the output clock.

    The fps filter keeps only the last frame of a tick. Whether a droppable frame can in fact be left out is for the
    decoder to say: it skips only those to which nothing refers.

    Args:
        origin: Timestamp of the clock's zero, in units of the stream.
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
        # The length of the last frame follows from the one before it where a packet's own is not to be trusted.
        yield packet, droppable and (packet.duration or 0) > 1


class _Lookahead:
    """Packets that wait to be decoded, and the last timestamp on each tick that they or recent ones fall on."""

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
            # To forget a tick is safe: its frames then count as its last.
            self._last_on_tick = {tick: self._last_on_tick[tick] for _, tick in self._waiting if tick is not None}

    def release(self) -> tuple[Packet[VideoStream], bool]:
        packet, tick = self._waiting.popleft()
        if not self._in_order or tick is None or packet.pts is None or packet.is_keyframe:
            return packet, False
        return packet, self._last_on_tick[tick] > packet.pts
