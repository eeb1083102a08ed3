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

from .tensors import Reader, Stored, WeightsError

OnWrite = Callable[[Path, int], None]
"""Called with each file of weights that is written, and its size in bytes."""


@contextlib.contextmanager
def new_folder(target: Path, needed: int, remark: Callable[[str], None]) -> Iterator[Path]:
    """A folder to write into that becomes the target at the end, in one step.

    Until then it lies beside the target as `.NAME.unfinished`. What a killed run left there is removed first.

    Args:
        needed: Bytes that will be written.
        remark: Told what was removed.

    Raises:
        WeightsError: the target has something in it, another run is writing it, or the disk is too small.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target} is not empty; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.unfinished"
    with _claimed(scratch):
        if any(scratch.iterdir()):
            remark(f"removing {scratch}, which a killed run left")
            _empty(scratch)
        try:
            _check_space(target.parent, needed)
            yield scratch
            scratch.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


@contextlib.contextmanager
def _claimed(scratch: Path) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends."""
    scratch.mkdir(exist_ok=True)
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(scratch).st_ino != os.fstat(descriptor).st_ino:  # the other run ended just now
                raise BlockingIOError
        except OSError:
            raise WeightsError(f"another run is writing {scratch}; wait for it, or name another folder") from None
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(f"{needed / 1e9:.1f} GB are to be written, and {folder} has {free / 1e9:.1f} GB free")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_weights(
    folder: Path, name: str, tensors: dict[str, Stored], shard_bytes: int | None, on_write: OnWrite
) -> None:
    """Writes stored tensors into `NAME`, or into shards with `NAME.index.json`.

    One shard is in the making at a time, and its tensors stay mapped from the files they are in.

    Args:
        name: `STEM.safetensors` or `STEM.bin`; the suffix decides the format.
        shard_bytes: What a shard may hold if that is more than one tensor; None for one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(tensors, shard_bytes)
    reader, stem, suffix = Reader(), Path(name).stem, Path(name).suffix
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = folder / (name if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}{suffix}")
        if suffix == ".safetensors":
            save_file(reader.read(shard), file, metadata={"format": "pt"})
        else:
            torch.save(reader.read(shard), file)
        _sync(file)
        weight_map |= dict.fromkeys(shard, file.name)
        on_write(file, sum(stored.nbytes for stored in shard.values()))
    if len(shards) > 1:
        total = sum(stored.nbytes for stored in tensors.values())
        write_json(folder / f"{name}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: dict[str, Stored], limit: int | None) -> list[dict[str, Stored]]:
    shards: list[dict[str, Stored]] = [{}]
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
    _sync(file)


def copy_file(source: Path, target: Path) -> None:
    """Copies what a link points at, too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    _sync(target)
