"""Pictures, videos, models and paths that the functions from file to file share."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from videolavit.media import Clip, DecomposeSettings, MediaError
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress, Progress
from videolavit.records import foreign
from videolavit.records.pictures import NotAnImage
from videolavit.records.storage import StorageSettings

from .prompts import Picture
from .runtime import Runtime, RuntimeSettings


def load_runtime(model: str | os.PathLike[str], settings: RuntimeSettings | None, on_progress: OnProgress) -> Runtime:
    """Opens a model by its folder or by the name of a preset, and reports untrained weights as a message.

    Raises:
        ModelError: there is no such model, or the device cannot be used.
    """
    folder = ModelFolder(model)
    runtime = Runtime(folder, settings)
    if not folder.is_trained:
        message = f"the weights of {folder.location} are untrained: the output is meaningless"
        on_progress(Progress("load model", message=message))
    return runtime


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Reads a picture from a file or URL. Raises MediaError."""
    with media_errors_of(path):
        return foreign.read_picture(os.fspath(path), StorageSettings())


def read_picture_or_clips(path: str | os.PathLike[str], max_clips: int) -> Picture | list[Clip]:
    """Reads a picture, or the clips of a video as the model was fine-tuned on them, from a file or URL.

    Args:
        max_clips: Largest number of clips of a video, of 4 s each.

    Raises:
        MediaError: the file is neither.
    """
    try:
        return read_picture(path)
    except NotAnImage:
        with media_errors_of(path):
            settings = DecomposeSettings(policy="eval", max_clips=max_clips)
            return foreign.read_clips(os.fspath(path), StorageSettings(), settings)


@contextlib.contextmanager
def media_errors_of(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of a file to the media errors of the block."""
    name = os.fspath(path)
    try:
        yield
    except MediaError as error:
        raise error if name in str(error) else type(error)(f"{name}: {error}") from None


def check_output(path: str | os.PathLike[str], suffix: str) -> Path:
    """Checks the path of a result before any work. Raises ValueError for another suffix, or without permission."""
    file = Path(path)
    if file.suffix.lower() != suffix:
        raise ValueError(f"{file}: the result is a {suffix} file; name it so")
    folder = file.parent
    while not folder.exists():
        folder = folder.parent
    if file.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {file}: it is a folder, or lies in one without permission")
    return file
