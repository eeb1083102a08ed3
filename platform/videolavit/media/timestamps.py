"""Times of packets and of decoded frames, as the `ffmpeg` command computes them.

A container may lack timestamps, repeat them, contradict itself, or start its clock anew in the middle. The way in which
the command repairs them decides which frame falls on which tick of the 6 fps clock, so the repair is reproduced here,
on integers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")

US_PER_SECOND = 1_000_000
MICROSECOND = Fraction(1, US_PER_SECOND)

JUMP_US = 10 * US_PER_SECOND
"""Distance from the expected time above which a discontinuous clock has jumped, in microseconds."""

WENT_BACK_US = US_PER_SECOND // 10
"""Step back above which a discontinuous clock has jumped, in microseconds."""

IMPOSSIBLE_US = 30 * 3600 * US_PER_SECOND
"""Distance from the expected time above which a timestamp of any other format is dropped, in microseconds."""


def rescale(value: int, source: Fraction, target: Fraction) -> int:
    """Computes `value * source / target`, rounded to the nearest integer, halves away from zero."""
    dividend = value * source.numerator * target.denominator
    divisor = source.denominator * target.numerator
    rounded = (2 * abs(dividend) + divisor) // (2 * divisor)
    return rounded if dividend >= 0 else -rounded


@dataclass
class PacketClock:
    """Counts the timestamps of a stream's packets from an origin, and keeps the count going where they jump.

    In formats that libavformat flags as discontinuous, such as transport streams, a splice or a restarted encoder
    makes the clock jump. What comes after a jump is moved to where the stream was expected to go on. In any other
    format a timestamp that is hours away from the one before is a fault, and is dropped.

    Args:
        time_base: Seconds per timestamp unit of the stream.
        start_us: Time from which the file is counted, in microseconds on the container's clock.
        origin_us: Time that becomes zero, in microseconds on the container's clock.
        is_discontinuous: True for a format that is flagged as discontinuous.
        wrap_bits: Number of bits of a timestamp in this format.
        average_rate: Frames per second over the whole stream; None if it is unknown.
        codec_rate: Frame rate by the header of the codec, in frames per second; None if there is none.
        reorders: True if frames are not decoded in the order in which they are shown.

    Attributes:
        has_jumped: True once a jump was found.
    """

    time_base: Fraction
    start_us: int
    origin_us: int
    is_discontinuous: bool
    wrap_bits: int
    average_rate: Fraction | None
    codec_rate: Fraction | None
    reorders: bool
    has_jumped: bool = False

    _offset_us: int = 0
    _dts_us: int | None = None
    _next_us: int | None = None
    _may_wrap: bool = True

    def __post_init__(self) -> None:
        self._start = rescale(self.start_us, MICROSECOND, self.time_base)
        self._origin = rescale(self.origin_us, MICROSECOND, self.time_base)

    def stamp(self, pts: int | None, dts: int | None, duration: int) -> tuple[int | None, int | None]:
        """Returns the repaired (pts, dts) of the next packet, in units of `time_base` from the origin.

        Args:
            duration: Length of the packet in units of `time_base`; 0 if it is unknown.
        """
        if self._may_wrap and self.wrap_bits < 64:
            pts, dts = self._unwrapped(pts, dts)
        offset = rescale(self._offset_us, MICROSECOND, self.time_base) - self._origin
        pts = None if pts is None else pts + offset
        dts = None if dts is None else dts + offset
        if dts is not None and self._next_us is not None:
            pts, dts = self._continued(pts, dts, self._next_us)
        self._expect(pts, dts, duration)
        return pts, dts

    def _unwrapped(self, pts: int | None, dts: int | None) -> tuple[int | None, int | None]:
        """Undoes a wrap that lies between the start and the first packets."""
        latest = self._start + (1 << self.wrap_bits - 1)
        wrapped_pts, wrapped_dts = pts is not None and pts > latest, dts is not None and dts > latest
        self._may_wrap = wrapped_pts or wrapped_dts
        whole = 1 << self.wrap_bits
        return pts - whole if pts is not None and wrapped_pts else pts, (
            dts - whole if dts is not None and wrapped_dts else dts
        )

    def _continued(self, pts: int | None, dts: int, expected_us: int) -> tuple[int | None, int | None]:
        """Moves a packet behind a jump to its expected time, or drops timestamps that are impossible."""
        delta = self._us(dts) - expected_us
        if not self.is_discontinuous:
            far_pts = pts is not None and abs(self._us(pts) - expected_us) > IMPOSSIBLE_US
            return None if far_pts else pts, None if abs(delta) > IMPOSSIBLE_US else dts
        went_back = self._dts_us is not None and self._us(dts) + WENT_BACK_US < self._dts_us
        if abs(delta) > JUMP_US or went_back:
            self.has_jumped = True
            self._offset_us -= delta
            moved = rescale(delta, MICROSECOND, self.time_base)
            return None if pts is None else pts - moved, dts - moved
        return pts, dts

    def _expect(self, pts: int | None, dts: int | None, duration: int) -> None:
        """Notes when the next packet should be decoded."""
        if self._next_us is None:  # the decoder holds a frame back for reordering
            delay = round(US_PER_SECOND / self.average_rate) if self.reorders and self.average_rate else 0
            self._next_us = (0 if pts is None else self._us(pts)) - delay
        if dts is not None:
            self._next_us = self._us(dts)
        self._dts_us = self._next_us
        if duration:
            self._next_us += self._us(duration)
        elif self.codec_rate:
            self._next_us += rescale(1, 1 / self.codec_rate, MICROSECOND)

    def _us(self, value: int) -> int:
        return rescale(value, self.time_base, MICROSECOND)


@dataclass
class FrameClock:
    """Repairs the time and the duration of each decoded frame of a stream, in the decoder's output order.

    Args:
        time_base: Seconds per timestamp unit of the stream.
        guessed_rate: Frame rate by the container, in frames per second.
        codec_rate: Frame rate by the header of the codec, in frames per second; None if there is none.
        timestamps_unreliable: True for formats without timestamps (elementary streams).
        first_pts: Timestamp of the first frame if it has none.
    """

    time_base: Fraction
    guessed_rate: Fraction | None
    codec_rate: Fraction | None
    timestamps_unreliable: bool
    first_pts: int = 0

    _faulty_pts: int = 0
    _faulty_dts: int = 0
    _last_raw_pts: int | None = None
    _last_raw_dts: int | None = None
    _last_pts: int | None = None
    _last_duration: int = 0

    def stamp(self, pts: int | None, dts: int | None, duration: int) -> tuple[int, int]:
        """Returns the repaired (pts, duration) of the next frame, in units of `time_base`."""
        repaired = self._trusted(pts, dts)
        if repaired is None:
            repaired = self.first_pts if self._last_pts is None else self._last_pts + self._last_duration
        self._last_duration = self._duration(repaired, duration)
        self._last_pts = repaired
        return repaired, self._last_duration

    def _trusted(self, pts: int | None, dts: int | None) -> int | None:
        """Returns the pts, or the dts if it has gone backwards less often."""
        if dts is not None:
            self._faulty_dts += self._last_raw_dts is not None and dts <= self._last_raw_dts
            self._last_raw_dts = dts
        elif pts is not None:
            self._last_raw_dts = pts
        if pts is not None:
            self._faulty_pts += self._last_raw_pts is not None and pts <= self._last_raw_pts
            self._last_raw_pts = pts
        elif dts is not None:
            self._last_raw_pts = dts
        if pts is not None and (self._faulty_pts <= self._faulty_dts or dts is None):
            return pts
        return dts

    def _duration(self, pts: int, declared: int) -> int:
        step = pts - self._last_pts if self._last_pts is not None else -1
        guessed_by_demuxer = declared == 1 and step > 2
        if declared > 0 and not self.timestamps_unreliable and not guessed_by_demuxer:
            return declared
        from_codec = rescale(1, 1 / self.codec_rate, self.time_base) if self.codec_rate else 0
        if from_codec > 0 and self.timestamps_unreliable:
            return from_codec
        from_rate = rescale(1, 1 / self.guessed_rate, self.time_base) if self.guessed_rate else 0
        for candidate in (step, declared, from_codec, from_rate, self._last_duration):
            if candidate > 0:
                return candidate
        return 1


def constant_rate(frames: Iterable[tuple[int, T]], fill_start: bool) -> Iterator[tuple[int, T]]:
    """Repeats and drops frames so that each tick has one, as the command's encoder stage does.

    A gap is filled with the frame before it, but for the last tick. Frames more than two ticks early are dropped.

    Args:
        frames: (tick, frame) pairs.
        fill_start: True to repeat the first frame from tick 0 on if it comes late, as in a file with other streams;
            False to start at the first frame.
    """
    next_tick, before = 0, None
    for position, (tick, frame) in enumerate(frames):
        if position == 0 and not fill_start:
            next_tick = max(tick, 0)
        if tick - next_tick < -2:
            continue
        while next_tick < tick - 1 and before is not None:
            yield next_tick, before
            next_tick += 1
        for _ in range(max(tick - next_tick, 0) + 1):
            yield next_tick, frame
            next_tick += 1
        before = frame
