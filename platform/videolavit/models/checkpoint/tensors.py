"""Reading of published files: no code from a pickle is run, and tensors are mapped instead of copied."""

import pickle
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..network import ModelError

_ZIP_HEADER, _LFS_POINTER = b"PK\x03\x04", b"version https://git-lfs"
_MAX_LISTED = 20


class WeightsError(ModelError):
    """A checkpoint cannot be imported or exported; the message names the file and the fix."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Args:
        file: File of the tensor, `.bin` or `.safetensors`.
        name: Name in the file.
        shape: Stored shape.
        dtype: Stored data type, which is kept.
    """

    file: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def list_tensors(file: Path) -> list[StoredTensor]:
    """Lists the tensors of a file, in its order. Raises WeightsError as `read_tensors` does."""
    return [StoredTensor(file, name, tensor.shape, tensor.dtype) for name, tensor in read_tensors(file).items()]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Opens the tensors of a file by name. They are mapped from disk and take memory only when they are used.

    Files that torch wrote before version 1.6 cannot be mapped, and are read as a whole.

    Raises:
        WeightsError: the file is damaged, holds anything but tensors by name, or is a pickle that asks for code.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from None
    if start.startswith(_LFS_POINTER):
        raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in the download")
    found = (
        _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file, start.startswith(_ZIP_HEADER))
    )
    if not isinstance(found, dict):
        raise WeightsError(f"{file} holds a {type(found).__name__}, not tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise WeightsError(f"{file} holds something else than tensors by name: {name!r}")
    return {name: tensor.detach() for name, tensor in found.items()}


def _read_safetensors(file: Path) -> object:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{file} is damaged or incomplete ({error}); download it again") from None


def _read_pickle(file: Path, is_zip: bool) -> object:
    try:
        with warnings.catch_warnings():  # about unusual pickle protocols; such files are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise WeightsError(
            f"{file} is refused: it {f'asks for {asked[1]}' if asked else 'is no pickle of weights'}, and nothing of "
            "it was run. It is damaged or meant to harm; take it from a source that you trust"
        ) from None
    except Exception as error:  # a damaged pickle can raise any exception
        reason = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{file} is damaged or incomplete ({type(error).__name__}: {reason}); download it again"
        ) from None


class TensorReader:
    """Reads tensors of several files. A file stays mapped while consecutive calls need it."""

    def __init__(self) -> None:
        self._open: dict[Path, dict[str, Tensor]] = {}

    def read(self, stored: dict[str, StoredTensor]) -> dict[str, Tensor]:
        """Reads stored tensors under other names, each contiguous and in a storage of its own."""
        needed = {one.file for one in stored.values()}
        self._open = {file: self._open.get(file) or read_tensors(file) for file in needed}
        return _separate({name: self._open[one.file][one.name] for name, one in stored.items()})


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share a storage or use a part of one: both formats would write it for each of them."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        if not whole or storage.data_ptr() in seen:
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return tensors


def raise_if_any(summary: str, problems: Iterable[str], advice: str = "") -> None:
    """Raises WeightsError if there are problems; the message lists the first of them."""
    listed = list(problems)
    if listed:
        listing = "".join(f"\n  {problem}" for problem in listed[:_MAX_LISTED])
        more = f"\n  and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
        raise WeightsError(f"{summary}:{listing}{more}" + (f"\n{advice}" if advice else ""))
