"""Folders that appear complete or not at all, and files of weights written shard by shard."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from videolavit.files import flush, publish, remove
from videolavit.progress import OnProgress, Progress

from ..part_files import naming_disk_faults
from .tensors import StoredTensor, TensorReader, WeightsError

OnWrite = Callable[[Path, int], None]
"""Called after each file of weights with its path and the size of its tensors, in bytes."""


@contextlib.contextmanager
def new_folder(target: Path, needed: int, remarks: list[str]) -> Iterator[Path]:
    """Yields a folder to write into, which becomes the target in one step when the body ends without an error.

    Until then it lies beside the target as `.NAME.unfinished`. The rest of a killed run is removed first.

    Args:
        target: Folder that does not exist yet, or is empty.
        needed: Bytes that will be written.
        remarks: Gets a line if the rest of a killed run was removed.

    Raises:
        WeightsError: the target has content, another run is writing it, or the disk is too small.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target} is not empty; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    with _locked(unfinished):
        if any(unfinished.iterdir()):
            remarks.append(f"removed {unfinished}, which a killed run left")
            for entry in unfinished.iterdir():
                remove(entry)
        try:
            free = shutil.disk_usage(target.parent).free
            if free < needed:
                sizes = f"{needed / 1e9:.1f} GB are to be written, and {target.parent} has {free / 1e9:.1f} GB free"
                raise WeightsError(sizes)
            yield unfinished
            publish(unfinished, target)
        except BaseException:
            remove(unfinished)
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this process. The system releases the lock however the process ends."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(folder).st_ino != os.fstat(descriptor).st_ino:  # the other run has just ended
                raise BlockingIOError
        except OSError:
            raise WeightsError(f"another run is writing {folder}; wait for it, or name another folder") from None
        yield
    finally:
        os.close(descriptor)


def progress_of_files(stage: str, total: int, on_progress: OnProgress) -> OnWrite:
    """Reports files of weights as progress.

    Args:
        stage: Name of the stage.
        total: Bytes in all.
        on_progress: Receives bytes done after every file, with its name and size as the message.
    """
    done = 0

    def on_write(file: Path, size: int) -> None:
        nonlocal done
        done += size
        on_progress(Progress(stage, done, total, f"{'/'.join(file.parts[-2:])}, {size / 1e9:.3f} GB"))

    return on_write


def write_weights(
    folder: Path, name: str, tensors: dict[str, StoredTensor], shard_bytes: int | None, on_write: OnWrite
) -> None:
    """Writes stored tensors to the file `NAME`, or to shards with `NAME.index.json`.

    One shard is in memory at a time, and its tensors stay mapped from their files.

    Args:
        folder: Folder of the file.
        name: `STEM.safetensors` or `STEM.bin`; the suffix decides the format.
        tensors: Tensors by their names in the new file.
        shard_bytes: Largest size of a shard of several tensors; None for one file.
        on_write: Called after each file.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(tensors, shard_bytes)
    reader, stem, suffix = TensorReader(), Path(name).stem, Path(name).suffix
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = folder / (name if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}{suffix}")
        with naming_disk_faults():
            _write(reader.read(shard), file)
        flush(file)
        weight_map |= dict.fromkeys(shard, file.name)
        on_write(file, sum(stored.nbytes for stored in shard.values()))
    if len(shards) > 1:
        total = sum(stored.nbytes for stored in tensors.values())
        write_json(folder / f"{name}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
        return
    with file.open("wb") as sink:  # a file of Python's own says why it cannot be written
        torch.save(tensors, sink)


def _split(tensors: dict[str, StoredTensor], limit: int | None) -> list[dict[str, StoredTensor]]:
    shards: list[dict[str, StoredTensor]] = [{}]
    size = 0
    for name, stored in tensors.items():
        if limit is not None and shards[-1] and size + stored.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = stored
        size += stored.nbytes
    return shards


def write_json(file: Path, values: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")
    flush(file)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file; of a link, the file that it points at."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    flush(target)
