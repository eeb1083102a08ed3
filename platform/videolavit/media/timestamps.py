"""Presentation times of decoded frames, as the `ffmpeg` command computes them.

A container may lack timestamps, repeat them or contradict itself. The way in which the command repairs them decides
which frame falls on which tick of the 6 fps clock, so the repair is reproduced here, on integers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")


def rescale(value: int, source: Fraction, target: Fraction) -> int:
    """Computes `value * source / target`, rounded to the nearest integer, halves away from zero."""
    exact = value * source / target
    rounded = (2 * abs(exact.numerator) + exact.denominator) // (2 * exact.denominator)
    return rounded if exact >= 0 else -rounded


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

    Frames more than two ticks early are dropped.

    Args:
        frames: (tick, frame) pairs.
        fill_start: True to repeat the first frame from tick 0 on if it comes late, as in a file with other streams;
            False to start at the first frame.
    """
    next_tick = 0
    for position, (tick, frame) in enumerate(frames):
        if position == 0 and not fill_start:
            next_tick = max(tick, 0)
        if tick - next_tick < -2:
            continue
        for _ in range(max(tick - next_tick, 0) + 1):
            yield next_tick, frame
            next_tick += 1
