"""Checkpoints that are whole or do not exist.

    checkpoints/step-00000100/
        shard-00001-model-00001-of-00001.safetensors    one per rank (torch's distributed checkpoint, as safetensors)
        files-00001.json                                one per rank: size and SHA-256 of the files it wrote
        manifest.json                                   all of these, and the state of the run; written last

A crash before the manifest is renamed into place leaves a folder without one. Such a folder is never read, and the
next save of its step removes it. Where files differ from their manifest (a faulty disk, an incomplete copy), the
checkpoint is skipped, and the one before it is loaded.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from videolavit.records.identity import differences
from videolavit.records.storage import Folder, StorageSettings

from .parallel import Ranks

# torch warns on every save and load in a single process
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed.checkpoint")

CHECKPOINT_MANIFEST = "manifest.json"
CHECKPOINT_FORMAT = "videolavit-checkpoint-1"
HASH_CHUNK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint cannot be continued from; the message names the fix."""


@dataclass(frozen=True)
class RunState:
    """State of a run beside its tensors.

    Args:
        step: Optimizer steps done.
        stream: State of the data stream.
        identity: Values that must not change when the run is resumed.
        tokens: Tokens or samples of each source so far, without padding.
        skipped: Consecutive steps that were skipped, up to now.
    """

    step: int
    stream: dict[str, int]
    identity: dict[str, Any]
    tokens: dict[str, int] = field(default_factory=dict)
    skipped: int = 0


class Checkpoints:
    """Checkpoints of a run.

    Args:
        folder: Folder of the checkpoints, on storage that all ranks share.
        keep: Number of newest checkpoints that are kept.
        on_message: Receives messages for people.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int, on_message: Callable[[str], None]) -> None:
        self._folder, self._ranks, self._keep, self._on_message = folder, ranks, keep, on_message
        self._pending: tuple[RunState, Future[None]] | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        # a process group of its own: saves communicate in the background while the training does too
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    # ---- saving -----------------------------------------------------------------------------------------------

    @property
    def saving(self) -> bool:
        """True from the begin of a save until it is committed."""
        return self._pending is not None

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Begins a save. The tensors are copied before this returns; writing goes on in the background."""
        assert self._pending is None, "one save at a time"
        target = self._path(state.step)
        if self._ranks.is_first:
            shutil.rmtree(target, ignore_errors=True)  # remains of a crash
            target.mkdir(parents=True)
        self._ranks.wait()
        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        self._pending = state, self._writer.submit(self._record_files, target, written)

    def _record_files(self, target: Path, written: Any) -> None:
        """Waits until this rank's files are written, and records their sizes and digests."""
        written.result()
        own = sorted(target.glob(f"shard-{self._ranks.rank + 1:05d}-*.safetensors"))
        _write_json(target, f"files-{self._ranks.rank + 1:05d}.json", {file.name: _fingerprint(file) for file in own})

    def commit(self, wait: bool = False) -> Path | None:
        """Writes the manifest once all ranks have written their files. Every rank calls this equally often.

        Args:
            wait: Waits until they have.

        Returns:
            Folder of the checkpoint, on every rank, if this call committed it.
        """
        if self._pending is None:
            return None
        state, files_recorded = self._pending
        if wait:
            files_recorded.result()
        if not self._ranks.agree(files_recorded.done()):
            return None
        files_recorded.result()
        target = self._path(state.step)
        if self._ranks.is_first:
            files: dict[str, Any] = {}
            for part in sorted(target.glob("files-*.json")):
                files |= json.loads(part.read_text())
            manifest = {"format": CHECKPOINT_FORMAT, "world": self._ranks.world, "files": files, **_stored(state)}
            _write_json(target, CHECKPOINT_MANIFEST, manifest)
            self._remove_old()
        self._ranks.wait()
        self._pending = None
        return target

    def _remove_old(self) -> None:
        for old in self._committed()[self._keep :]:
            (old / CHECKPOINT_MANIFEST).unlink()  # first: a folder without it is no checkpoint
            shutil.rmtree(old, ignore_errors=True)

    # ---- loading ----------------------------------------------------------------------------------------------

    def resume(self, tensors: dict[str, Tensor], identity: dict[str, Any]) -> RunState | None:
        """Fills tensors in place from the newest checkpoint whose files fit its manifest.

        Args:
            tensors: Tensors of the run, sharded over any number of ranks.
            identity: Identity of the run, as JSON values; it must be that of the checkpoint.

        Returns:
            State of the run at the checkpoint; None where there is none.

        Raises:
            CheckpointError: the checkpoint is of another run, or a tensor is missing or of another shape.
        """
        for path in self._committed():
            problem = self._problem(path)
            if problem is None:
                break
            self._on_message(f"skipped the checkpoint {path.name}: {problem}")
        else:
            return None
        state = _restored(json.loads((path / CHECKPOINT_MANIFEST).read_text()))
        changed = differences(state.identity, json.loads(json.dumps(identity)))
        if changed:
            raise CheckpointError(
                f"{self._folder.parent} holds another training. Choose another output, or undo what differs "
                "(theirs -> ours):" + "".join(f"\n  {difference}" for difference in changed)
            )
        try:
            reader = HuggingFaceStorageReader(str(path))
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(
                f"{path} holds another model: {first[-1] if first else type(error).__name__}; "
                "choose another output, or the model that it was started with"
            ) from None
        self._on_message(f"continues from {path.name}")
        return state

    def _committed(self) -> list[Path]:
        """Folders with a manifest, newest first."""
        return sorted((path.parent for path in self._folder.glob(f"step-*/{CHECKPOINT_MANIFEST}")), reverse=True)

    def _problem(self, path: Path) -> str | None:
        """Describes how files differ from the manifest; None if they fit. Each rank verifies its share of the files."""
        try:
            manifest = json.loads((path / CHECKPOINT_MANIFEST).read_text())
            files = sorted(manifest["files"].items()) if manifest["format"] == CHECKPOINT_FORMAT else None
        except (OSError, ValueError, KeyError, TypeError):
            files = None
        if files is None:
            return "its manifest cannot be read"  # equal on every rank
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


def _stored(state: RunState) -> dict[str, Any]:
    """A state as the manifest stores it."""
    return {
        "step": state.step,
        "stream": state.stream,
        "facts": state.identity,
        "tokens": state.tokens,
        "skipped": state.skipped,
    }


def _restored(manifest: dict[str, Any]) -> RunState:
    names = ("step", "stream", "facts", "tokens", "skipped")
    return RunState(*(manifest[name] for name in names))


def _write_json(folder: Path, name: str, value: Any) -> None:
    Folder(str(folder), StorageSettings()).replace(name, (json.dumps(value, indent=2) + "\n").encode())


def _fingerprint(file: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as content:
        while chunk := content.read(HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
