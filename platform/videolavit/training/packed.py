"""Sequence packing: documents side by side in rows of one length, with little padding and nothing dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from videolavit.models.language_model.flops import Flops
from videolavit.models.objective import Batch
from videolavit.recent import Recent
from videolavit.vocabulary import Vocabulary
from videolavit.vocabulary.packing import pack
from videolavit.vocabulary.sequences import Ids, TokenType, token_types

from .data import Item

PackedRow = list[tuple[int, int]]
"""Documents of a packed row: (position of the sample, index of its sequence)."""


PADDING = ""
"""Source of the padding at the end of a row, which is a document without targets."""


@dataclass(frozen=True, eq=False)
class Document:
    """Token sequence that attends to itself only.

    Attributes:
        ids: Token ids to predict, int64 [length].
        source: Name of its source.
        input_ids: Token ids that the model reads, [length]; None for `ids`.
    """

    ids: Ids
    source: str
    input_ids: Ids | None = None


class Documents(Protocol):
    """Documents by the position of their sample in the data order. Lengths are known before documents are loaded."""

    def lengths(self, position: int) -> list[int]:
        """Lengths of the documents of a sample, in token ids."""
        ...

    def source(self, position: int) -> str:
        """Name of the source of a sample."""
        ...

    def identify(self, position: int) -> str:
        """Id of a sample."""
        ...

    def load(self, position: int, index: int) -> Document:
        """Loads a document of a sample."""
        ...


@dataclass(frozen=True)
class PackingSettings:
    """Packing of documents into rows.

    Args:
        length: Length of a row, in token ids.
        packing: Packs several documents into a row; False puts one document into each.
        chunk: Consecutive samples that are packed into the same rows. More of them leave less padding.
        seed: Seed of the order of the rows of a chunk.
    """

    length: int
    packing: bool = True
    chunk: int = 1024
    seed: int = 0


class PackedStream:
    """Endless stream of packed rows. The samples of a chunk are packed into rows, which are shuffled.

    Packing depends on the lengths of documents only, so that every rank knows all rows and loads only its own.
    """

    def __init__(self, documents: Documents, settings: PackingSettings) -> None:
        self._documents, self._settings = documents, settings
        self._chunk = self._row = 0
        self._rows = Recent(self._packed_chunk, 2)

    def take(self, count: int) -> list[Item]:
        items: list[Item] = []
        while len(items) < count:
            rows = self._rows(self._chunk)
            taken = rows[self._row : self._row + count - len(items)]
            items += [row_item(self._documents, row) for row in taken]
            self._row += len(taken)
            if self._row == len(rows):
                self._chunk, self._row = self._chunk + 1, 0
        return items

    def state(self) -> dict[str, int]:
        return {"chunk": self._chunk, "row": self._row}

    def seek(self, state: dict[str, int]) -> None:
        self._chunk, self._row = state["chunk"], state["row"]

    def _packed_chunk(self, chunk: int) -> list[PackedRow]:
        size = self._settings.chunk
        rows = pack_rows(self._documents, range(chunk * size, (chunk + 1) * size), self._settings)
        order = np.random.default_rng([self._settings.seed, chunk]).permutation(len(rows))
        return [rows[index] for index in order]


def pack_rows(documents: Documents, positions: range, settings: PackingSettings) -> list[PackedRow]:
    """Rows of the samples at some positions."""
    lengths = {(position, index): n for position in positions for index, n in enumerate(documents.lengths(position))}
    if not settings.packing:
        return [[document] for document in lengths]
    documents_in_order = list(lengths)
    return [[documents_in_order[index] for index in row] for row in pack(list(lengths.values()), settings.length)]


def row_item(documents: Documents, row: PackedRow) -> Item:
    """Item of a row. Its position is that of the first document's sample."""
    sources = dict.fromkeys(documents.source(position) for position, _ in row)
    return Item(row[0][0], ", ".join(sources), partial(_load, documents, row), partial(_identify, documents, row))


def _identify(documents: Documents, row: PackedRow) -> list[str]:
    return [documents.identify(position) for position, _ in row]


def _load(documents: Documents, row: PackedRow) -> list[Document]:
    return [documents.load(position, index) for position, index in row]


@dataclass(frozen=True)
class PackedCollate:
    """Collates rows of documents.

    Position ids start again with every document. The padding at the end of a row is a document without targets.

    Args:
        vocabulary: Id ranges of the modalities.
        flops: Counts the floating-point operations of documents.
        length: Length of a packed row; None for rows of one document, which are padded to the longest of the batch.
    """

    vocabulary: Vocabulary
    flops: Flops
    length: int | None = None

    def __call__(self, items: Sequence[Item], rows: Sequence[Sequence[Document]]) -> Batch:
        """Batch with the inputs:

        ids, positions: Token ids and position ids, [batch, length].
        ends: Document boundaries in the flattened batch, [documents + 1]; only of packed rows.
        places: Indices in the flattened batch that predict a token, [n].
        targets, types: Predicted token id and its type, [n].
        """
        length = self.length or max(sum(len(document.ids) for document in row) for row in rows)
        ids = np.zeros((len(rows), length), np.int64)
        input_ids = np.zeros_like(ids)
        positions = np.zeros((len(rows), length), np.int64)
        places: list[Ids] = []
        ends = [0]
        tokens: dict[str, int] = {}
        sources: list[str] = []
        for index, row in enumerate(rows):
            end = 0
            for document in row:
                start, end = end, end + len(document.ids)
                ids[index, start:end] = document.ids
                input_ids[index, start:end] = document.ids if document.input_ids is None else document.input_ids
                positions[index, start:end] = np.arange(end - start)
                places.append(np.arange(start, end - 1) + index * length)
                ends.append(end + index * length)
                tokens[document.source] = tokens.get(document.source, 0) + end - start
                sources.append(document.source)
            positions[index, end:] = np.arange(length - end)
            if end < length:
                ends.append((index + 1) * length)
                sources += [PADDING] if self.length else []
        at = np.concatenate(places)
        targets = ids.ravel()[at + 1]
        types = token_types(targets, self.vocabulary)
        packed = {"ends": np.array(ends, np.int32)} if self.length else {}
        arrays = {"ids": input_ids, "positions": positions, "places": at, "targets": targets, "types": types}
        return Batch(
            inputs={name: torch.from_numpy(array) for name, array in (arrays | packed).items()},
            counts={"loss": float(len(at))} | {one.name.lower(): float((types == one).sum()) for one in TokenType},
            positions=[item.position for item in items],
            tokens=tokens,
            size=ids.size,
            flops=self.flops([len(document.ids) for row in rows for document in row]),
            sources=sources,
        )
