"""Live progress of a long job: a bar on a terminal, a line now and then in a log."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .common import console

LOG_EVERY = 10.0


class Tally:
    """Adds up progress records and shows them.

    Args:
        what: Name of the work.
        total: Samples to be done.
        detail: Says what there is so far, from the counts and the seconds that they took.
    """

    def __init__(self, what: str, total: int, detail: Callable[[Mapping[str, float], float], str]) -> None:
        self.counts: Counter[str] = Counter()
        self.started = time.monotonic()
        self._what, self._total, self._describe, self._logged = what, total, detail, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, detail="")

    def __enter__(self) -> "Tally":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None and not console.is_terminal:
            self._log()

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds a record of counts; `samples` moves the bar."""
        self.counts.update(record)
        self._bar.update(self._task, completed=self.counts["samples"], detail=self._detail())
        if not console.is_terminal and time.monotonic() - self._logged > LOG_EVERY:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        console.print(f"{self._what}: {self.counts['samples']:.0f}/{self._total} samples, {self._detail()}")

    def _detail(self) -> str:
        return self._describe(self.counts, max(time.monotonic() - self.started, 1e-9))
