"""Checkpoint of a remote storage of which a rank brings its own shards only.

Its files on this machine have their full sizes, with holes where a rank needs nothing.
"""

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

READ_BYTES = 1 << 26
"""Largest part of a file that is read at once."""

_LENGTH_BYTES = 8
"""Size of the number at the start of a safetensors file, which is the length of its header."""


class RemoteFiles(Protocol):
    """Files of a checkpoint on a remote storage, by their names in its manifest."""

    def size(self, name: str) -> int:
        """Size of a file, in bytes. Raises FileNotFoundError."""
        ...

    def read(self, name: str, start: int, end: int) -> bytes:
        """Reads bytes of a file. Raises FileNotFoundError."""
        ...


def is_as_described(files: RemoteFiles, name: str, expected: Mapping[str, Any]) -> bool:
    """True if a file has the size and the digest that its manifest says.

    Args:
        expected: `bytes` and `sha256`.
    """
    digest, size = hashlib.sha256(), expected["bytes"]
    try:
        if files.size(name) != size:
            return False
        for start in range(0, size, READ_BYTES):
            digest.update(files.read(name, start, min(start + READ_BYTES, size)))
    except FileNotFoundError:
        return False
    return digest.hexdigest() == expected["sha256"]


def bring_headers(files: RemoteFiles, sizes: Mapping[str, int], folder: Path) -> None:
    """Makes files of a checkpoint that hold their headers, and holes in place of tensors.

    Args:
        sizes: Size of each file, in bytes.
        folder: Folder on this machine.
    """
    for name, size in sizes.items():
        length = int.from_bytes(files.read(name, 0, _LENGTH_BYTES), "little")
        header = files.read(name, 0, _LENGTH_BYTES + length)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(size)


def bring_tensors(files: RemoteFiles, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills the holes that a rank needs for its tensors.

    Args:
        folder: Folder with the headers.
        tensors: Tensors to load, whole or sharded. What does not fit the checkpoint is left to the loading.
    """
    for file, names in _needed(folder, tensors).items():
        with (folder / file).open("r+b") as target:
            for start, end in _places(folder / file, names):
                for begin in range(start, end, READ_BYTES):
                    target.seek(begin)
                    target.write(files.read(file, begin, min(begin + READ_BYTES, end)))


def _needed(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Names of the tensors that are needed of each file."""
    reader = HuggingFaceStorageReader(str(folder))
    metadata = reader.read_metadata()
    needed: defaultdict[str, set[str]] = defaultdict(set)
    for name, value in tensors.items():
        planner = DefaultLoadPlanner()
        planner.set_up_planner({name: value}, metadata)
        with contextlib.suppress(RuntimeError, ValueError):  # another name or shape
            for item in planner.create_local_plan().items:
                stored = metadata.storage_data[item.storage_index]
                needed[Path(stored.relative_path).name].add(item.storage_index.fqn)
    return needed


def _places(file: Path, names: set[str]) -> list[tuple[int, int]]:
    """First byte and end of tensors in a safetensors file, in order; neighbours are one."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH_BYTES), "little")
        header = json.loads(content.read(length))
    places: list[tuple[int, int]] = []
    for start, end in sorted(header[name]["data_offsets"] for name in names):
        if places and places[-1][1] == start:
            start = places.pop()[0]
        places.append((start, end))
    return [(_LENGTH_BYTES + length + start, _LENGTH_BYTES + length + end) for start, end in places]
