"""What the jobs that run a model share: its options, its progress, and pictures from files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from videolavit.generation.prompts import Picture
from videolavit.generation.runtime import Runtime, RuntimeSettings
from videolavit.media import MediaError
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress
from videolavit.progress import Progress as LibraryProgress
from videolavit.records.pictures import decode_image
from videolavit.records.storage import StorageSettings, open_source

from .common import JobParser, console, pick

MODEL_HELP = "model folder, or a preset with untrained weights: tiny, small, video-lavit-7b"


def add_model_options(parser: JobParser) -> None:
    """`--model` and where it runs."""
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_class_arguments(RuntimeSettings)


def start_runtime(options: Any) -> Runtime:
    """The runtime that the options ask for; says so where the weights are untrained. Raises ModelError."""
    model = ModelFolder(options.model)
    if not model.is_trained:
        remark = f"[yellow]the weights of {escape(options.model)} are untrained: what comes out means nothing[/]"
        console.print(remark, soft_wrap=True)
    return Runtime(model, pick(RuntimeSettings, options))


def read_picture(path: str) -> Picture:
    """A picture from a file or URL. Raises MediaError."""
    with naming(path), open_source(path, StorageSettings()) as file:
        return decode_image(file.read())


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Puts the name of a file in front of what is wrong with it."""
    try:
        yield
    except MediaError as error:
        raise error if path in str(error) else type(error)(f"{path}: {error}") from None


def new_file(path: str, suffix: str) -> Path:
    """A path for a result. Raises ValueError for another kind of file."""
    file = Path(path)
    if file.suffix.lower() != suffix:
        raise ValueError(f"{path}: the result is a {suffix} file; name it so")
    if file.is_dir() or not os.access(_existing(file.parent), os.W_OK):
        raise ValueError(f"cannot write {path}: it is a folder, or lies in one without permission")
    return file


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


@contextlib.contextmanager
def stages() -> Iterator[OnProgress]:
    """Shows the stages of a generation: bars on a terminal, a line a stage in a log."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def show(progress: LibraryProgress) -> None:
            stage = progress.stage
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=progress.total)
                if not console.is_terminal:
                    console.print(stage)
            bar.update(tasks[stage], completed=progress.done)

        yield show
