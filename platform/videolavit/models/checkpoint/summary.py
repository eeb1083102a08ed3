"""Summary of an import or export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .tensors import StoredTensor


@dataclass(frozen=True)
class PartSummary:
    """Weights of one part.

    Args:
        name: Name of the part, its folder in a model.
        tensors: Number of tensors; 0 for a part that has only a config.
        parameters: Number of values in them.
        nbytes: Their size, in bytes.
        types: Their data types, such as `float32`, sorted.
    """

    name: str
    tensors: int
    parameters: int
    nbytes: int
    types: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSummary:
    """Result of an import or export.

    Args:
        folder: Folder that was written.
        parts: Parts of the folder.
        remarks: Lines for the user: files and tensors that were not used, and why.
    """

    folder: Path
    parts: tuple[PartSummary, ...]
    remarks: tuple[str, ...] = ()

    @property
    def tensors(self) -> int:
        """Number of tensors of all parts."""
        return sum(part.tensors for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Size of the tensors of all parts, in bytes."""
        return sum(part.nbytes for part in self.parts)


def summarize_part(name: str, tensors: Mapping[str, StoredTensor]) -> PartSummary:
    """Counts the tensors of a part."""
    stored = tensors.values()
    return PartSummary(
        name,
        tensors=len(tensors),
        parameters=sum(one.shape.numel() for one in stored),
        nbytes=sum(one.nbytes for one in stored),
        types=tuple(sorted({str(one.dtype).removeprefix("torch.") for one in stored})),
    )
