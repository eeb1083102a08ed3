"""Packets of a time range with repaired timestamps, and which of them need no decoding."""

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
from .timestamps import MICROSECOND, PacketClock, rescale

DROPPABLE_CODECS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4", "vp8"})
"""Codecs whose decoders can skip frames that no other frame refers to (`skip_frame` NONREF)."""

HELD_BYTES = 1 << 26
"""Largest size of the packets that are held back until it is known whether they must be decoded, in bytes."""

_TS_DISCONT = 0x200
"""Flag AVFMT_TS_DISCONT of libavformat."""

_WRAP_BITS = {"mpegts": 33, "mpeg": 33}
"""Bits of a timestamp in formats that wrap within a video's length, after 26.5 hours."""

LOOKAHEAD = 32
"""Number of packets read ahead to find a later frame on the same tick; larger than any reordering depth."""


# ---- clocks -------------------------------------------------------------------------------------------------------


def is_discontinuous(container: InputContainer) -> bool:
    """True for formats whose clock may jump: transport and programme streams, Ogg, live FLV, raw MPEG-4."""
    return bool(container.format.flags & _TS_DISCONT)


def packet_clock(container: InputContainer, stream: VideoStream, start_seconds: float = 0.0) -> PacketClock:
    """Clock for the packets of a stream, with its zero at the start of a range.

    The `ffmpeg` command counts a file from the start of the container, or in discontinuous formats from that of the
    only stream in use.
    """
    assert stream.time_base is not None
    may_jump, start = is_discontinuous(container), container.start_time or 0
    if may_jump and stream.start_time is not None:
        start = rescale(stream.start_time, stream.time_base, MICROSECOND)
    return PacketClock(
        time_base=stream.time_base,
        start_us=start,
        origin_us=start + round(start_seconds * av.time_base),
        is_discontinuous=may_jump,
        wrap_bits=_WRAP_BITS.get(container.format.name, 64),
        average_rate=stream.average_rate,
        codec_rate=stream.codec_context.framerate or None,
        reorders=stream.codec_context.has_b_frames,
    )


def repaired(packets: Iterable[Packet[VideoStream]], clock: PacketClock) -> Iterator[Packet[VideoStream]]:
    """Yields packets with the timestamps that a clock gives them."""
    for packet in packets:
        if packet.size:
            packet.pts, packet.dts = clock.stamp(packet.pts, packet.dts, packet.duration or 0)
        yield packet


# ---- ranges ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_at(
    source: VideoInput, settings: DecomposeSettings, start_seconds: float
) -> Iterator[tuple[InputContainer, VideoStream, Iterator[tuple[Packet[VideoStream], bool]]]]:
    """Opens a source, with its packets from a key frame before the start of a range on.

    Timestamps of the packets are repaired, and count from the start of the range. With each packet comes whether the
    decoder may skip it.

    Where seeking fails or leads past the start, the source is opened again and read from its first packet: not every
    demuxer can return to it. A clock that may jump is no guide for a search, so its packets are always read.
    """
    if start_seconds > 0:
        with open_video(source, settings) as (container, stream):
            clock = packet_clock(container, stream, start_seconds)
            if clock.is_discontinuous:
                packets = _from_key_frame(repaired(container.demux(stream), clock))
                yield container, stream, mark_droppable(packets, stream, settings, clock)
                return
            found = _found(container, stream, clock.origin_us)
            if found is not None:
                yield container, stream, mark_droppable(repaired(found, clock), stream, settings, clock)
                return
    with open_video(source, settings) as (container, stream):
        clock = packet_clock(container, stream, start_seconds)
        yield container, stream, mark_droppable(repaired(container.demux(stream), clock), stream, settings, clock)


def _found(container: InputContainer, stream: VideoStream, target_us: int) -> Iterator[Packet[VideoStream]] | None:
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


def _from_key_frame(packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """Leaves out the packets before the last key frame that is shown at zero or before.

    Without timestamps, or with more bytes between two key frames than can be held, it leaves out fewer.
    """
    held: list[Packet[VideoStream]] = []
    size = 0
    for packet in packets:
        if packet.pts is not None and packet.pts <= 0 and packet.is_keyframe:
            held, size = [], 0
        held.append(packet)
        size += packet.size
        if packet.pts is None or packet.pts > 0 or size > HELD_BYTES:
            break
    yield from held
    yield from packets


# ---- packets that need no decoding -----------------------------------------------------------------------------------


def mark_droppable(
    packets: Iterable[Packet[VideoStream]], stream: VideoStream, settings: DecomposeSettings, clock: PacketClock
) -> Iterator[tuple[Packet[VideoStream], bool]]:
    """Yields (packet, droppable), where droppable means that a later frame falls on the same tick of the output.

    The fps filter keeps only the last frame of a tick. The decoder skips a droppable frame only if no other frame
    refers to it.
    """
    if stream.codec_context.name not in DROPPABLE_CODECS:
        yield from ((packet, False) for packet in packets)
        return
    lookahead = _Lookahead(stream, settings, clock)
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

    def __init__(self, stream: VideoStream, settings: DecomposeSettings, clock: PacketClock) -> None:
        assert stream.time_base is not None
        self._time_base, self._tick_length = stream.time_base, Fraction(1, settings.fps)
        self._waiting: deque[tuple[Packet[VideoStream], int | None]] = deque()
        self._last_on_tick: dict[int, int] = {}
        self._last_dts: int | None = None
        self._clock = clock
        self._in_order = True

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, packet: Packet[VideoStream]) -> None:
        tick = None
        went_back = packet.dts is not None and self._last_dts is not None and packet.dts <= self._last_dts
        if packet.size and (packet.pts is None or went_back or self._clock.has_jumped):
            self._in_order = False  # timestamps that need repair say nothing about what the filter will drop
        elif packet.size and not packet.is_discard:
            assert packet.pts is not None
            tick = rescale(packet.pts, self._time_base, self._tick_length)
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
