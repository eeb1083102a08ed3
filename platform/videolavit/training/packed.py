"""Documents side by side in rows of one length: no padding to speak of, and nothing dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from videolavit.models.language_model.flops import Flops
from videolavit.models.objective import Batch
from videolavit.recent import Recent
from videolavit.vocabulary import Vocabulary
from videolavit.vocabulary.packing import pack
from videolavit.vocabulary.sequences import Ids, Modality, modality_of

from .data import Item

Row = list[tuple[int, int]]
"""The documents of a row: (position of the sample, which of its sequences)."""


@dataclass(frozen=True, eq=False)
class Document:
    """A sequence that sees itself only.

    Attributes:
        ids: int64 [length].
        source: Name of where it comes from.
        seen: What is read in their place, [length]; None for the same.
    """

    ids: Ids
    source: str
    seen: Ids | None = None


class Documents(Protocol):
    """Documents by the position of their sample in the data order, their lengths known before they are loaded."""

    def lengths(self, position: int) -> list[int]: ...

    def source(self, position: int) -> str: ...

    def load(self, position: int, index: int) -> Document: ...


@dataclass(frozen=True)
class RowSettings:
    """How documents become rows.

    Args:
        length: Of a row, in ids.
        packing: False puts one document into a row.
        chunk: Samples that are packed together. Rows differ in nothing but these, and more of them leave less room.
        seed: Decides the order of the rows of a chunk.
    """

    length: int
    packing: bool = True
    chunk: int = 1024
    seed: int = 0


class PackedStream:
    """Rows of documents, without end. The samples of a chunk are packed together, and their rows are shuffled.

    Which documents are in a row follows from their lengths alone, so that every rank can tell, and reads its own only.
    """

    def __init__(self, documents: Documents, settings: RowSettings) -> None:
        self._documents, self._settings = documents, settings
        self._chunk = self._row = 0
        self._rows = Recent(self._make_rows, 2)

    def take(self, count: int) -> list[Item]:
        items: list[Item] = []
        while len(items) < count:
            rows = self._rows(self._chunk)
            taken = rows[self._row : self._row + count - len(items)]
            items += [item_of(self._documents, row) for row in taken]
            self._row += len(taken)
            if self._row == len(rows):
                self._chunk, self._row = self._chunk + 1, 0
        return items

    def state(self) -> dict[str, int]:
        return {"chunk": self._chunk, "row": self._row}

    def seek(self, state: dict[str, int]) -> None:
        self._chunk, self._row = state["chunk"], state["row"]

    def _make_rows(self, chunk: int) -> list[Row]:
        size = self._settings.chunk
        rows = rows_of(self._documents, range(chunk * size, (chunk + 1) * size), self._settings)
        order = np.random.default_rng([self._settings.seed, chunk]).permutation(len(rows))
        return [rows[index] for index in order]


def rows_of(documents: Documents, positions: range, settings: RowSettings) -> list[Row]:
    """The rows of the samples at some positions."""
    lengths = {(position, index): n for position in positions for index, n in enumerate(documents.lengths(position))}
    if not settings.packing:
        return [[document] for document in lengths]
    names = list(lengths)
    return [[names[index] for index in row] for row in pack(list(lengths.values()), settings.length)]


def item_of(documents: Documents, row: Row) -> Item:
    """A row before it is loaded, under the position of its first document's sample."""
    sources = dict.fromkeys(documents.source(position) for position, _ in row)
    return Item(row[0][0], ", ".join(sources), partial(_load, documents, row))


def _load(documents: Documents, row: Row) -> list[Document]:
    return [documents.load(position, index) for position, index in row]


@dataclass(frozen=True)
class RowCollate:
    """Makes a batch of rows of documents.

    Positions start again with every document. The padding at the end of a row is one more document, without targets.

    Args:
        flops: Counts what the documents take.
        length: Of every row. None is for one document a row: they are padded to the longest of the batch.
    """

    vocabulary: Vocabulary
    flops: Flops
    length: int | None = None

    def __call__(self, items: Sequence[Item], rows: Sequence[Sequence[Document]]) -> Batch:
        """Inputs: `ids` and `positions` [batch, length]; `ends` [documents + 1] in the flat batch, of packed rows;
        `places` [n] in it that predict an id, `targets` [n] which, and `modality` [n] of what kind."""
        length = self.length or max(sum(len(document.ids) for document in row) for row in rows)
        ids = np.zeros((len(rows), length), np.int64)
        seen = np.zeros_like(ids)
        positions = np.zeros((len(rows), length), np.int64)
        places: list[Ids] = []
        ends = [0]
        tokens: dict[str, int] = {}
        for index, row in enumerate(rows):
            end = 0
            for document in row:
                start, end = end, end + len(document.ids)
                ids[index, start:end] = document.ids
                seen[index, start:end] = document.ids if document.seen is None else document.seen
                positions[index, start:end] = np.arange(end - start)
                places.append(np.arange(start, end - 1) + index * length)
                ends.append(end + index * length)
                tokens[document.source] = tokens.get(document.source, 0) + end - start
            positions[index, end:] = np.arange(length - end)
            if end < length:
                ends.append((index + 1) * length)
        at = np.concatenate(places)
        targets = ids.ravel()[at + 1]
        modality = modality_of(targets, self.vocabulary)
        packed = {"ends": np.array(ends, np.int32)} if self.length else {}
        return Batch(
            inputs=_tensors(ids=seen, positions=positions, places=at, targets=targets, modality=modality, **packed),
            counts={"loss": float(len(at))} | {one.name.lower(): float((modality == one).sum()) for one in Modality},
            positions=[item.position for item in items],
            tokens=tokens,
            size=ids.size,
            flops=self.flops([len(document.ids) for row in rows for document in row]),
        )


def _tensors(**arrays: Any) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
