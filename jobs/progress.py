"""Progress of long jobs on a terminal: a bar for each stage, or a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from videolavit.progress import OnProgress, Progress

from .common import console

LOG_EVERY = 10.0
"""Seconds between two lines about one stage in a log."""


@contextmanager
def shown() -> Iterator[OnProgress]:
    """Shows the progress of a call on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _Display(bars)


class _Display:
    """Receives progress; messages without a total are lines of their own."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        if not progress.total:
            console.print(escape(f"{progress.stage}: {progress.message}"), soft_wrap=True)
        elif console.is_terminal:
            if progress.stage not in self._tasks:
                self._tasks[progress.stage] = self._bars.add_task(progress.stage, total=progress.total, message="")
            task = self._tasks[progress.stage]
            self._bars.update(task, completed=progress.done, total=progress.total, message=progress.message)
        else:
            self._log(progress)

    def _log(self, progress: Progress) -> None:
        """Prints the first line of a stage, one now and then, and the last."""
        now = time.monotonic()
        is_last = progress.done >= progress.total
        if is_last or now - self._logged.get(progress.stage, -LOG_EVERY) >= LOG_EVERY:
            self._logged[progress.stage] = now
            line = f"{progress.stage}: {progress.done:.0f}/{progress.total:.0f}"
            console.print(escape(f"{line}, {progress.message}" if progress.message else line), soft_wrap=True)
