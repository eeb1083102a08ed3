"""Sequence packing: documents side by side in rows of one length, with little padding and nothing dropped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from videolavit.models.language_model.flops import Flops
from videolavit.models.objective import Batch
from videolavit.vocabulary import Vocabulary
from videolavit.vocabulary.packing import pack
from videolavit.vocabulary.sequences import Ids, TokenType, token_types

from .data import LANES, DataError, Item, StreamState, positions_in

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
        chunk: Consecutive samples, over all lanes, that are packed at a time. More of them leave less padding.
        seed: Seed of the order of the rows of a chunk.
    """

    length: int
    packing: bool = True
    chunk: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class _Chunk:
    """Samples of a lane that are packed together.

    Attributes:
        number: Number of the chunk in its lane, from 0.
        first_row: Number of its first row in the lane.
        carried: Documents that the chunk before left to it.
        rows: Rows of the chunk.
        left: Documents that it leaves to the next one.
    """

    number: int
    first_row: int
    carried: PackedRow
    rows: list[PackedRow]
    left: PackedRow


class PackedStream:
    """Endless stream of packed rows, from one lane of the data order after another.

    The samples of a lane are packed a chunk at a time, and a chunk's rows are shuffled. The emptiest row is not padded:
    its documents go into the rows of the next chunk. Packing depends only on the lengths of the lane's documents, so
    that a rank plans the lanes that it takes rows from, and loads its own rows.
    """

    def __init__(self, documents: Documents, settings: PackingSettings) -> None:
        self._documents, self._settings = documents, settings
        self._row = 0
        self._chunks: dict[int, _Chunk] = {}

    def take(self, count: int, rank: int = 0, world: int = 1) -> list[Item]:
        first, self._row = self._row, self._row + count
        return [row_item(self._documents, self._row_at(row)) for row in range(first + rank, self._row, world)]

    def state(self) -> StreamState:
        lanes = sorted(self._chunks.items())
        return {"row": self._row} | {
            f"lane {lane}": [chunk.number, chunk.first_row, [list(document) for document in chunk.carried]]
            for lane, chunk in lanes
        }

    def seek(self, state: StreamState) -> None:
        """Moves the stream to a state. Raises DataError for one of an earlier version."""
        if "chunk" in state:
            raise DataError(
                "the order of packed rows has changed since this checkpoint; begin a new run with its weights "
                "(continue_from)"
            )
        self._row = state["row"]
        self._chunks = {}
        for lane in range(LANES):
            if (known := state.get(f"lane {lane}")) is not None:
                number, first_row, carried = known
                self._chunks[lane] = self._packed(lane, number, first_row, [(place, index) for place, index in carried])

    def _row_at(self, row: int) -> PackedRow:
        """Row of the stream. The rows of a lane are asked for in order."""
        number, lane = divmod(row, LANES)
        chunk = self._chunks.get(lane) or self._packed(lane, 0, 0, [])
        while number >= chunk.first_row + len(chunk.rows):
            chunk = self._packed(lane, chunk.number + 1, chunk.first_row + len(chunk.rows), chunk.left)
        self._chunks[lane] = chunk
        return chunk.rows[number - chunk.first_row]

    def _packed(self, lane: int, number: int, first_row: int, carried: PackedRow) -> _Chunk:
        size = -(-self._settings.chunk // LANES)
        positions = positions_in(lane, range(number * size, (number + 1) * size))
        lengths = {(place, index): self._documents.lengths(place)[index] for place, index in carried}
        lengths |= _lengths(self._documents, positions)
        rows = _pack(lengths, self._settings)
        left = _emptiest(rows, lengths, self._settings)
        order = np.random.default_rng([self._settings.seed, lane, number]).permutation(len(rows))
        return _Chunk(number, first_row, carried, [rows[index] for index in order], left)


def pack_rows(documents: Documents, positions: Iterable[int], settings: PackingSettings) -> list[PackedRow]:
    """Rows of the samples at some positions."""
    return _pack(_lengths(documents, positions), settings)


def _lengths(documents: Documents, positions: Iterable[int]) -> dict[tuple[int, int], int]:
    """Lengths of the documents of some samples."""
    return {(position, index): n for position in positions for index, n in enumerate(documents.lengths(position))}


def _pack(lengths: dict[tuple[int, int], int], settings: PackingSettings) -> list[PackedRow]:
    """Rows of some documents."""
    if not settings.packing:
        return [[document] for document in lengths]
    documents = list(lengths)
    return [[documents[index] for index in row] for row in pack(list(lengths.values()), settings.length)]


def _emptiest(rows: list[PackedRow], lengths: dict[tuple[int, int], int], settings: PackingSettings) -> PackedRow:
    """Takes the emptiest row away and returns its documents; none where all rows are full, or hold one document."""
    if not settings.packing or not rows:
        return []
    used = [sum(lengths[document] for document in row) for row in rows]
    # the last of equals: documents that have waited once are in the first rows
    emptiest = min(range(len(rows)), key=lambda row: (used[row], -row))
    return rows.pop(emptiest) if used[emptiest] < settings.length else []


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
