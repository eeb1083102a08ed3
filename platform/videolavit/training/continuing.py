"""Start of a new run from the weights of another: those of a model, or those of a checkpoint."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from videolavit.models.model_file import MODEL_FILE
from videolavit.records.addresses import shown
from videolavit.records.storage import Folder, StorageSettings, absolute_url

from .checkpoint import CHECKPOINT_MANIFEST, CHECKPOINTS, CheckpointError
from .remote import is_remote
from .task import start_in, starts_of


@dataclass(frozen=True)
class Origin:
    """Place from which a run takes its first weights.

    Args:
        model: Model folder, or name of a model, that the run starts from; None where nothing tells it.
        checkpoint: Folder of the checkpoint whose weights replace those of the model; None for those of the model.
    """

    model: str | None
    checkpoint: str | None


def find_origin(location: str, storage: StorageSettings) -> Origin:
    """Tells a model from a checkpoint. The folder of a run stands for its newest checkpoint.

    Raises:
        CheckpointError: it is the folder of a run that has no checkpoint.
        StorageError: the location cannot be used.
    """
    url = absolute_url(location) if is_remote(location) or Path(location.removeprefix("file://")).is_dir() else location
    head, mark, step = url.rstrip("/").rpartition(f"/{CHECKPOINTS}/")
    folder = Folder(head if mark else url, storage)
    if not mark:
        if folder.read(MODEL_FILE) is not None:
            return Origin(url, None)
        steps = [name for name in folder.names(CHECKPOINTS, "") if name.startswith("step-")]
        committed = [name for name in steps if folder.read(f"{CHECKPOINTS}/{name}/{CHECKPOINT_MANIFEST}") is not None]
        if steps and not committed:
            raise CheckpointError(f"{shown(location)} has no checkpoint to continue from")
        if not committed:
            return Origin(url, None)  # a name, or no model, which is said where it is loaded
        step = max(committed)
    elif folder.read(f"{CHECKPOINTS}/{step}/{CHECKPOINT_MANIFEST}") is None:
        raise CheckpointError(f"{shown(location)} is no checkpoint: it has no {CHECKPOINT_MANIFEST}")
    start = start_in(starts_of(folder), int(step.partition("-")[2]))
    return Origin(start["task"]["model"] if start else None, f"{folder.url}/{CHECKPOINTS}/{step}")


def content_of(checkpoint: Path) -> str:
    """Digest of a checkpoint: 16 hexadecimal digits, by which it is known wherever it lies."""
    return hashlib.sha256((checkpoint / CHECKPOINT_MANIFEST).read_bytes()).hexdigest()[:16]
