"""Published files, read without running what a pickle may ask for and without copying them into memory."""

import json
import pickle
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..network import ModelError

_ZIP, _LFS_POINTER = b"PK\x03\x04", b"version https://git-lfs"
_SHOWN = 20


class WeightsError(ModelError):
    """A published folder cannot be imported, or a model not exported; the message names the file and the fix."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Args:
        file: The `.bin` or `.safetensors`.
        name: Its name there.
        shape: As stored.
        dtype: As stored, and kept.
    """

    file: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def list_tensors(file: Path) -> list[Stored]:
    """What is in a file, in its order.

    Raises:
        WeightsError: see `read_tensors`.
    """
    return [Stored(file, name, tensor.shape, tensor.dtype) for name, tensor in read_tensors(file).items()]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, mapped from disk: what is not touched costs no memory.

    Files that torch wrote before version 1.6 cannot be mapped, and are read as a whole.

    Raises:
        WeightsError: the file is damaged, holds something else than tensors by name, or is a pickle that asks for
            more than tensors.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from None
    if start.startswith(_LFS_POINTER):
        raise WeightsError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in the download")
    found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file, start.startswith(_ZIP))
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
        with warnings.catch_warnings():  # on the protocols of strange pickles, which are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise WeightsError(
            f"{file} is refused: it {f'asks for {asked[1]}' if asked else 'is no pickle of weights'}, and nothing of "
            "it was run. It is damaged or meant to harm; take it from a source that you trust"
        ) from None
    except Exception as error:  # what a damaged pickle raises has no end
        reason = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(
            f"{file} is damaged or incomplete ({type(error).__name__}: {reason}); download it again"
        ) from None


class Reader:
    """Tensors of several files; a file stays mapped while it is in use."""

    def __init__(self) -> None:
        self._open: dict[Path, dict[str, Tensor]] = {}

    def read(self, stored: dict[str, Stored]) -> dict[str, Tensor]:
        """The stored tensors under other names, each contiguous and in a storage of its own."""
        needed = {one.file for one in stored.values()}
        self._open = {file: self._open.get(file) or read_tensors(file) for file in needed}
        return _separate({name: self._open[one.file][one.name] for name, one in stored.items()})


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies those that are a part of a larger storage, or share one: both formats would write it for each."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        if not whole or storage.data_ptr() in seen:
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
    return tensors


def refuse(what: str, problems: Iterable[str], advice: str = "") -> None:
    """Raises WeightsError if there are problems, and lists the first of them."""
    listed = list(problems)
    if listed:
        shown = "".join(f"\n  {problem}" for problem in listed[:_SHOWN])
        more = f"\n  and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise WeightsError(f"{what}:{shown}{more}" + (f"\n{advice}" if advice else ""))


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises WeightsError if there is none."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"cannot read {file}: {error}") from None
