"""Checkpoints that are whole or do not exist.

    checkpoints/step-00000100/
        shard-00001-model-00001-of-00001.safetensors    one a rank (torch's distributed checkpoint, as safetensors)
        files-00001.json                                one a rank: size and SHA-256 of the files it wrote
        manifest.json                                   all of them, and the position of the run; written last

What a crash leaves behind: before the manifest, a folder without one, which is never read and is removed by the next
save of its step; while the manifest is renamed into place, the same, or a whole checkpoint. A manifest that is there
but does not fit its files (a disk that lied, a copy cut short) fails verification, and the one before it is taken.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from videolavit.records.storage import Folder, StorageSettings

from .parallel import Ranks

# it remarks on every save and load of a single process
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed.checkpoint")

MANIFEST = "manifest.json"
FORMAT = "videolavit-checkpoint-1"
CHUNK = 1 << 20

Tell = Callable[[str], None]


class CheckpointError(ValueError):
    """A checkpoint cannot be continued from; the message names the fix."""


@dataclass(frozen=True)
class Position:
    """Where a run is, beside its tensors.

    Args:
        step: Optimizer steps done.
        stream: State of the data stream.
        facts: What a run that continues must agree on.
        tokens: Useful tokens or samples of each source so far.
        skipped: Steps in a row that were skipped, up to now.
    """

    step: int
    stream: dict[str, int]
    facts: dict[str, Any]
    tokens: dict[str, int] = field(default_factory=dict)
    skipped: int = 0


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: Where they are; all ranks see the same one.
        keep: Newest ones that are kept.
        tell: Is told what is worth a line.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int, tell: Tell) -> None:
        self._folder, self._ranks, self._keep, self._tell = folder, ranks, keep, tell
        self._pending: tuple[Position, Future[None]] | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        # of its own: a save talks in the background, while the training does too
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    # ---- saving -----------------------------------------------------------------------------------------------

    @property
    def saving(self) -> bool:
        """Whether a save has begun and is not committed."""
        return self._pending is not None

    def save(self, tensors: dict[str, Tensor], position: Position) -> None:
        """Begins a save. The tensors are copied before this returns; writing goes on in the background."""
        assert self._pending is None, "one save at a time"
        target = self._path(position.step)
        if self._ranks.is_first:
            shutil.rmtree(target, ignore_errors=True)  # what a crash left
            target.mkdir(parents=True)
        self._ranks.wait()
        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        self._pending = position, self._writer.submit(self._sign, target, written)

    def _sign(self, target: Path, written: Any) -> None:
        """Waits for this rank's files, and writes down what they must be."""
        written.result()
        own = sorted(target.glob(f"shard-{self._ranks.rank + 1:05d}-*.safetensors"))
        self._write(target, f"files-{self._ranks.rank + 1:05d}.json", {file.name: _fingerprint(file) for file in own})

    def commit(self, wait: bool = False) -> Path | None:
        """Writes the manifest once all ranks have written their files; every rank calls this equally often.

        Args:
            wait: Until they have.

        Returns:
            The checkpoint, on every rank, if it was committed now.
        """
        if self._pending is None:
            return None
        position, signed = self._pending
        if wait:
            signed.result()
        if not self._ranks.agree(signed.done()):
            return None
        signed.result()
        target = self._path(position.step)
        if self._ranks.is_first:
            files: dict[str, Any] = {}
            for part in sorted(target.glob("files-*.json")):
                files |= json.loads(part.read_text())
            manifest = {"format": FORMAT, "world": self._ranks.world, "files": files, **asdict(position)}
            self._write(target, MANIFEST, manifest)
            self._remove_old()
        self._ranks.wait()
        self._pending = None
        return target

    def _write(self, target: Path, name: str, value: Any) -> None:
        Folder(str(target), StorageSettings()).replace(name, (json.dumps(value, indent=2) + "\n").encode())

    def _remove_old(self) -> None:
        for old in self._committed()[self._keep :]:
            (old / MANIFEST).unlink()  # first: what is left without it is no checkpoint
            shutil.rmtree(old, ignore_errors=True)

    # ---- loading ----------------------------------------------------------------------------------------------

    def newest(self) -> tuple[Path, Position] | None:
        """The newest checkpoint whose files are what its manifest says; says when it skips one."""
        for path in self._committed():
            problem = self._problem(path)
            if problem is None:
                manifest = json.loads((path / MANIFEST).read_text())
                names = ("step", "stream", "facts", "tokens", "skipped")
                return path, Position(**{name: manifest[name] for name in names})
            self._tell(f"skipped the checkpoint {path.name}: {problem}")
        return None

    def load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Fills tensors, spread over any number of ranks, in place.

        Raises:
            CheckpointError: a tensor is missing or of another shape.
        """
        try:
            reader = HuggingFaceStorageReader(str(path))
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(
                f"{path} holds another model: {first[-1] if first else type(error).__name__}; "
                "choose another --output, or the model that it was started with"
            ) from None

    def _committed(self) -> list[Path]:
        """Folders with a manifest, newest first."""
        return sorted((path.parent for path in self._folder.glob(f"step-*/{MANIFEST}")), reverse=True)

    def _problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint. Every rank reads its share of the files."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            files = sorted(manifest["files"].items()) if manifest["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            files = None
        if files is None:
            return "its manifest cannot be read"  # the same on every rank
        wrong = [
            name
            for name, expected in files[self._ranks.rank :: self._ranks.world]
            if not (path / name).is_file() or _fingerprint(path / name) != expected
        ]
        if self._ranks.agree(not wrong):
            return None
        return f"{', '.join(wrong) or 'a file'} is not what the manifest says"

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"


def _fingerprint(file: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
