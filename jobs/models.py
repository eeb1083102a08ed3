"""Options and progress of the jobs that run a model."""

import contextlib
from collections.abc import Iterator

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from videolavit.generation.runtime import RuntimeSettings
from videolavit.progress import OnProgress, Progress

from .common import JobParser, console

MODEL_HELP = "model folder, or a preset with untrained weights: tiny, small, video-lavit-7b"


def add_model_options(parser: JobParser) -> None:
    """Adds `--model` and the options of its placement."""
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_class_arguments(RuntimeSettings)


def print_message(progress: Progress) -> None:
    """Prints the message of a progress report, such as a warning, and ignores its counts."""
    if progress.message:
        console.print(f"[yellow]{escape(progress.message)}[/]", soft_wrap=True)


@contextlib.contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Yields a callback that shows the stages of a call: as bars on a terminal, as a line for each stage in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with ProgressBars(*columns, console=console, disable=not console.is_terminal) as bars:

        def show(progress: Progress) -> None:
            print_message(progress)
            if not progress.total:
                return
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total)
                if not console.is_terminal:
                    console.print(progress.stage)
            bars.update(tasks[progress.stage], completed=progress.done)

        yield show
