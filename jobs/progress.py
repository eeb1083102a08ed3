"""Progress of library calls on standard error: a bar for each stage on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from videolavit.progress import OnProgress, Progress

from .common import console, foreign

LOG_SECONDS = 10.0
"""Time between two lines about one stage in a log, in seconds."""


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Yields a callback that shows the progress of a library call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[message]}", markup=False),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _Display(bars)


class _Display:
    """Callback that shows progress; a report that has only a message becomes a line of its own."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.message and not progress.total:
            console.print(foreign(f"{progress.stage}: {progress.message}"), soft_wrap=True)
        elif console.is_terminal:
            if progress.stage not in self._tasks:
                self._tasks[progress.stage] = self._bars.add_task(progress.stage, message="")
            task, total = self._tasks[progress.stage], progress.total or None
            self._bars.update(task, completed=progress.done, total=total, message=foreign(progress.message).plain)
        else:
            self._log(progress)

    def _log(self, progress: Progress) -> None:
        """Prints the first line of a stage, one every ten seconds, and the last."""
        now = time.monotonic()
        is_last = 0 < progress.total <= progress.done
        if is_last or now - self._logged.get(progress.stage, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged[progress.stage] = now
            line = f"{progress.stage}: {progress.done:.0f}" + (f"/{progress.total:.0f}" if progress.total else "")
            console.print(foreign(f"{line}, {progress.message}" if progress.message else line), soft_wrap=True)


def show_message(progress: Progress) -> None:
    """Prints the message of a report, if it has one."""
    if progress.message:
        console.print(foreign(progress.message), soft_wrap=True)
