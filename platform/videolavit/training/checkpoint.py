"""Checkpoints that are whole or do not exist.

    checkpoints/step-00000100/
        shard-00001-model-00001-of-00001.safetensors    one per rank (torch's distributed checkpoint, as safetensors)
        manifest.json                                   their size and SHA-256, and the state of the run; written last

A crash before the manifest is renamed into place leaves a folder without one. Such a folder is never read, and the
next save of its step removes it. Where files differ from their manifest (a faulty disk, an incomplete copy), the
checkpoint is skipped, and the one before it is loaded.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from videolavit.records.storage import Folder, StorageSettings

from .data import StreamState
from .optimizer import AVERAGE_PREFIX, WEIGHT_PREFIX
from .parallel import Ranks
from .partial_checkpoint import RemoteFiles, bring_headers, bring_tensors, is_as_described

# torch warns on every save and load in a single process
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed.checkpoint")

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""

CHECKPOINT_MANIFEST = "manifest.json"
CHECKPOINT_FORMAT = "videolavit-checkpoint-1"
HASH_CHUNK = 1 << 20

BEST = "best.json"
"""File that names the checkpoint with the best validation."""


FileDigests = dict[str, Any]
"""Sizes and digests of files by their names."""


class RemoteCheckpoints(Protocol):
    """Checkpoints on a remote storage, by the names of their folders.

    Attributes:
        url: Address of the run, for messages.
    """

    url: str

    def send_checkpoint(self, folder: Path, names: list[str], attempt: str) -> None:
        """Sends files of a folder for a checkpoint that one attempt makes."""
        ...

    def commit(self, name: str, manifest: dict[str, Any], attempt: str) -> None:
        """Creates the manifest of a checkpoint; it exists from then on."""
        ...

    def note(self, name: str, content: bytes) -> None:
        """Replaces a small file beside the checkpoints."""
        ...

    def bring_checkpoint(self, folder: Path) -> None:
        """Brings the files that the manifest in a folder of this machine names."""
        ...

    def files(self, folder: Path) -> RemoteFiles:
        """Files that the manifest in a folder of this machine names, where they lie."""
        ...

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, the manifest first."""
        ...


class CheckpointError(ValueError):
    """A checkpoint cannot be continued from; the message names the fix."""


@dataclass(frozen=True)
class RunState:
    """State of a run beside its tensors.

    Args:
        step: Optimizer steps done.
        stream: State of the data stream, of all ranks.
        identity: Values that must not change when the run is resumed.
        tokens: Tokens or samples of each source so far, without padding.
        skipped: Consecutive steps that were skipped, up to now.
        resumed_from: Step that the run was told to continue from; None for the newest.
    """

    step: int
    stream: StreamState
    identity: dict[str, Any]
    tokens: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    resumed_from: int | None = None


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run continues from.

    Args:
        name: Name of its folder.
        has_average: False if it has no averaged weights, and the run has.
    """

    name: str
    state: RunState
    has_average: bool


class Checkpoints:
    """Checkpoints of a run.

    Args:
        folder: Folder of the checkpoints, on storage that all ranks share.
        keep: Number of newest checkpoints that are kept, beside the best.
        on_message: Receives messages for people.
        remote: Remote counterpart of the folder, which is then one of this rank alone.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        keep: int,
        on_message: Callable[[str], None],
        remote: RemoteCheckpoints | None = None,
    ) -> None:
        self._folder, self._ranks, self._keep, self._on_message = folder, ranks, keep, on_message
        self._remote, self._broken = remote, set[str]()
        self._run = remote.url if remote is not None else str(folder.parent)  # for messages
        self._keeps_folder = ranks.is_first or remote is not None
        self._brings_parts = remote is not None and ranks.world > 1
        self._attempt = ranks.gather(secrets.token_hex(4))[0]
        self._pending: tuple[RunState, Future[FileDigests]] | None = None
        self._best: tuple[int, float] | None = None  # step and value
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
        if self._keeps_folder:
            shutil.rmtree(target, ignore_errors=True)  # remains of a crash
            target.mkdir(parents=True)
        if self._remote is not None and self._ranks.is_first and target.name in self._broken:
            self._remote.remove_checkpoint(target.name)
        self._ranks.wait()
        writer = HuggingFaceStorageWriter(str(target), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        self._pending = state, self._writer.submit(self._record_files, target, written)

    def _record_files(self, target: Path, written: Any) -> FileDigests:
        """Waits until this rank's files are written, and returns their sizes and digests."""
        try:
            written.result()
        except CheckpointException as failed:  # which is no Exception, and holds those of the ranks
            raise next(error for error, _ in failed.failures.values()) from None
        own = sorted(target.glob(f"shard-{self._ranks.rank + 1:05d}-*.safetensors"))
        files = {file.name: _fingerprint(file) for file in own}
        if self._remote is not None:
            self._remote.send_checkpoint(target, list(files), self._attempt)
            for file in own:
                file.unlink()
        return files

    def commit(self, wait: bool = False) -> None:
        """Writes the manifest once all ranks have written their files. Every rank calls this equally often.

        Args:
            wait: Waits until they have.
        """
        if self._pending is None:
            return
        state, files_recorded = self._pending
        if wait:
            files_recorded.result()
        if not self._ranks.agree(files_recorded.done()):
            return
        files = {name: one for own in self._ranks.gather(files_recorded.result()) for name, one in own.items()}
        target = self._path(state.step)
        manifest = {"format": CHECKPOINT_FORMAT, "world": self._ranks.world, "files": files, **_stored(state)}
        if self._ranks.is_first and self._remote is not None:
            self._remote.commit(target.name, manifest, self._attempt)
        if self._keeps_folder:
            _write_json(target, CHECKPOINT_MANIFEST, manifest)
            if not state.skipped:  # the weights may be broken, and those before are not
                self._remove(self._committed()[self._keep :])
        self._ranks.wait()
        self._pending = None

    def note_best(self, step: int, value: float) -> bool:
        """Keeps the checkpoint of a step if its value is the smallest so far; returns whether it is."""
        if self._best is not None and self._best[1] <= value:
            return False
        self._best = step, value
        if self._keeps_folder:
            _write_json(self._folder, BEST, {"step": step, "value": value})
            if self._ranks.is_first and self._remote is not None:
                self._remote.note(BEST, (self._folder / BEST).read_bytes())
            self._remove(self._committed()[self._keep :])  # the one that was the best
        return True

    def _remove(self, paths: list[Path]) -> None:
        for old in paths:
            if self._best is None or old != self._path(self._best[0]):
                if self._ranks.is_first and self._remote is not None:
                    self._remote.remove_checkpoint(old.name)
                (old / CHECKPOINT_MANIFEST).unlink()  # first: a folder without it is no checkpoint
                shutil.rmtree(old, ignore_errors=True)

    # ---- loading ----------------------------------------------------------------------------------------------

    def resume(
        self,
        tensors: dict[str, Tensor],
        changed: Callable[[dict[str, Any]], Mapping[str, str]],
        step: int | None = None,
    ) -> Resumed | None:
        """Fills tensors in place from the newest checkpoint whose files fit its manifest.

        Args:
            tensors: Tensors of the run, sharded over any number of ranks. Averaged weights may be missing there.
            changed: Compares the identity of a checkpoint with that of the run: what differs and is not accepted, as
                lines by their names.
            step: Step to continue from, instead of the newest. Checkpoints after it are removed, but for those of a run
                that continued from it.

        Returns:
            The checkpoint; None where there is none.

        Raises:
            CheckpointError: the checkpoint is of another run, a tensor is missing or of another shape, or there is no
                checkpoint of the step.
        """
        path = self._first_whole(self._candidates(step))
        if path is None:
            return None
        resumed = self._load(path, tensors, changed)
        self._forget_after(path, step)
        return resumed

    def load_before(
        self, step: int, tensors: dict[str, Tensor], changed: Callable[[dict[str, Any]], Mapping[str, str]]
    ) -> Resumed | None:
        """Fills tensors as `resume` does, from the newest checkpoint before a step, and removes nothing."""
        path = self._first_whole([path for path in self._committed() if _step(path) < step])
        return None if path is None else self._load(path, tensors, changed)

    def _first_whole(self, paths: list[Path]) -> Path | None:
        """The first checkpoint whose files fit its manifest; the others are named."""
        for path in paths:
            if self._remote is not None and not self._brings_parts:
                self._remote.bring_checkpoint(path)
            problem = self._problem(path)
            if problem is None:
                return path
            self._on_message(f"skipped the checkpoint {path.name}: {problem}")
            self._broken.add(path.name)
        return None

    def _load(
        self, path: Path, tensors: dict[str, Tensor], changed: Callable[[dict[str, Any]], Mapping[str, str]]
    ) -> Resumed:
        """Fills tensors from a checkpoint, unless it is of another run."""
        manifest = json.loads((path / CHECKPOINT_MANIFEST).read_text())
        state = _restored(manifest)
        refused = changed(state.identity)
        if refused:
            raise CheckpointError(
                f"{self._run} holds another training. Choose another output, undo what differs, or accept it "
                f"(accept_changes: {', '.join(refused)}) (theirs -> ours):"
                + "".join(f"\n  {line}" for line in refused.values())
            )
        if self._remote is not None and self._brings_parts:
            files, sizes = self._remote.files(path), {name: one["bytes"] for name, one in manifest["files"].items()}
            bring_headers(files, sizes, path)
            bring_tensors(files, path, tensors)
        stored = self._names(path)
        found = {
            name: value for name, value in tensors.items() if name in stored or not name.startswith(AVERAGE_PREFIX)
        }
        self._fill(path, found)
        return Resumed(path.name, state, has_average=len(found) == len(tensors))

    def begin_from(self, path: Path, tensors: dict[str, Tensor], *, moments: bool) -> bool:
        """Fills tensors in place from a checkpoint of another run.

        Args:
            path: Folder of the checkpoint.
            tensors: Tensors of this run.
            moments: True to take the optimizer's moments and the averaged weights too. Otherwise the averaged weights,
                where there are any, become the weights, as in the model that a run writes at its end.

        Returns:
            True if the averaged weights were filled.

        Raises:
            CheckpointError: files differ from the manifest, a tensor is missing or of another shape.
        """
        problem = self._problem(path)
        if problem is not None:
            raise CheckpointError(f"cannot continue from {path}: {problem}")
        stored = self._names(path)
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            averaged = name.replace(WEIGHT_PREFIX, AVERAGE_PREFIX, 1)
            if name.startswith(WEIGHT_PREFIX):
                found[averaged if averaged in stored and not moments else name] = value
            elif moments and (name in stored or not name.startswith(AVERAGE_PREFIX)):
                found[name] = value
        self._fill(path, found)
        self._on_message(f"begins with the {'state' if moments else 'weights'} of {path}")
        return moments and len(found) == len(tensors)

    def _names(self, path: Path) -> Collection[str]:
        """Names of the tensors of a checkpoint."""
        names: Collection[str] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata.keys()
        return names

    def _fill(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Fills tensors from a checkpoint by their names there."""
        reader = HuggingFaceStorageReader(str(path))
        try:
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()
            raise CheckpointError(
                f"{path} holds another model: {first[-1] if first else type(error).__name__}; "
                "choose another output, or the model that it was started with"
            ) from None

    def _candidates(self, step: int | None) -> list[Path]:
        """Checkpoints to continue from, in the order in which they are tried."""
        found = self._committed()
        if step is None:
            return found
        chosen = [path for path in found if _resumed_from(path) == step or path == self._path(step)]
        if found and not chosen:
            steps = ", ".join(str(_step(path)) for path in reversed(found))
            raise CheckpointError(f"there is no checkpoint of step {step} in {self._run}; there are steps {steps}")
        return chosen

    def _forget_after(self, path: Path, step: int | None) -> None:
        """Removes the checkpoints that a run which goes back to a step leaves, and reads which one is the best."""
        self._ranks.wait()  # all have read
        best = self._folder / BEST
        if best.is_file():
            noted = json.loads(best.read_text())
            if noted["step"] <= _step(path) and self._path(noted["step"]) in self._committed():
                self._best = noted["step"], noted["value"]
        self._ranks.wait()
        if step is not None and self._keeps_folder:
            self._remove([one for one in self._committed() if _step(one) > _step(path)])

    def steps(self) -> list[int]:
        """Steps of the checkpoints, in order."""
        return [_step(path) for path in reversed(self._committed())]

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
        own = files[self._ranks.rank :: self._ranks.world]
        if self._remote is not None and self._brings_parts:
            remote = self._remote.files(path)
            wrong = [name for name, expected in own if not is_as_described(remote, name, expected)]
        else:
            wrong = [
                name for name, expected in own if not (path / name).is_file() or _fingerprint(path / name) != expected
            ]
        if self._ranks.agree(not wrong):
            return None
        return f"{', '.join(wrong) or 'a file'} is not what the manifest says"

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _resumed_from(path: Path) -> int | None:
    """Step that the run of a checkpoint was told to continue from; None also if its manifest cannot be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        step: int | None = json.loads((path / CHECKPOINT_MANIFEST).read_text()).get("resumed_from")
        return step
    return None


def _stored(state: RunState) -> dict[str, Any]:
    """A state as the manifest stores it."""
    return {
        "step": state.step,
        "stream": state.stream,
        "facts": state.identity,
        "tokens": state.tokens,
        "skipped": state.skipped,
        "resumed_from": state.resumed_from,
    }


def _restored(manifest: dict[str, Any]) -> RunState:
    return RunState(
        step=manifest["step"],
        stream=manifest["stream"],
        identity=manifest["facts"],
        tokens=manifest["tokens"],
        skipped=manifest["skipped"],
        resumed_from=manifest.get("resumed_from"),
    )


def _write_json(folder: Path, name: str, value: Any) -> None:
    Folder(str(folder), StorageSettings()).replace(name, (json.dumps(value, indent=2) + "\n").encode())


def _fingerprint(file: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as content:
        while chunk := content.read(HASH_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
