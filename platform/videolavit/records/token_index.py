"""Index of a token run: the lengths of its samples, which a training must know before it reads one.

    index/00000.parquet                 a row for each of some shards: rows, tokenizers, numbers of codes
    index/text-DIGEST/00000.parquet     lengths of the texts of the same shards in ids of one text tokenizer

Files are derived from the shards alone, and are never changed: new shards get further ones. A shard that is in none can
be used all the same, by reading it.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .addresses import joined
from .parquet import ParquetReader
from .schema import KIND, TOKEN_INDEX, TOKEN_TEXTS
from .shards import TOKEN_SHARDS, Ledger
from .storage import Folder
from .table_reader import TableReader
from .tokenizer_info import TOKENIZER_PARTS

INDEX_FOLDER = "index"

SHARDS_PER_FILE = 1024
SHARDS_PER_GROUP = 16
"""Shards of a row group of the index, which is read as a whole to look one of them up."""

KEPT_INDEX_GROUPS = 64
"""Row groups of the index that stay in memory, of some 50 kB each."""

_LISTED = ("shard", "rows", "made_by")
_LENGTHS = ("num_clips", "visual_tokens", "motion_tokens")
_MAKERS = (*TOKENIZER_PARTS, "visual_codes", "motion_codes")
_READERS = 16

CountText = Callable[[Sequence[str]], list[int]]
"""Lengths of texts in ids."""


class NoTokenShard(ValueError):
    """A file among the token shards that is none."""


@dataclass(frozen=True, eq=False)
class ListedShards:
    """Committed shards of a run in the order of their names. Holds some 60 bytes of each.

    Attributes:
        names: Names of the files.
        rows: Number of rows of each.
        files: Number of the index file that has the shard; -1 for none.
        places: Row of the index file.
        makers: Tokenizers and sizes of codebooks, as JSON -> name of the first shard that it made.
    """

    names: pa.StringArray
    rows: NDArray[np.int64]
    files: NDArray[np.int32]
    places: NDArray[np.int32]
    makers: dict[str, str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, shard: int) -> str:
        """Name of a shard, within the folder of the run."""
        return f"{TOKEN_SHARDS.folder}/{self.names[shard]}"


@dataclass(frozen=True, eq=False)
class CodeLengths:
    """Numbers of codes of a shard's samples. The clips of a row are `clips[row]` to `clips[row + 1] - 1`."""

    clips: NDArray[np.int64]
    visual: NDArray[np.int64]
    motion: NDArray[np.int64]


class TokenIndex:
    """Index in the folder of a token run."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._tables = TableReader(folder.settings, KEPT_INDEX_GROUPS)

    def update(self) -> int:
        """Adds the shards that no file has; returns their number. Another call goes on after a crash.

        Another writer does no harm: who comes second finds the number of a file taken, and looks again.
        """
        added = 0
        while True:
            listed = self.shards(with_footers=False)
            new = listed.names.filter(pa.array(listed.files < 0))
            number = max(self._numbers(), default=-1) + 1
            for start in range(0, len(new), SHARDS_PER_FILE):
                with ThreadPoolExecutor(_READERS) as readers:
                    names = new[start : start + SHARDS_PER_FILE].to_pylist()
                    rows = [row for row in readers.map(self._index_row, names) if row is not None]
                if rows and not self._folder.create_bytes(_file(number), _parquet(rows, TOKEN_INDEX)):
                    break
                added, number = added + len(rows), number + bool(rows)
            else:
                return added

    def shards(self, with_footers: bool = True) -> ListedShards:
        """Lists the committed shards.

        Args:
            with_footers: Reads the footers of shards that are not in the index; otherwise they have no rows.

        Raises:
            NoTokenShard: a file among them is none.
        """
        names = pa.array(sorted(Ledger(self._folder, TOKEN_SHARDS).committed()), pa.string())
        indexed = self._listed()
        found = pc.index_in(names, value_set=indexed["shard"])
        at = pc.fill_null(found, 0).to_numpy(zero_copy_only=False)
        is_indexed = pc.is_valid(found).to_numpy(zero_copy_only=False)

        def column(name: str, other: int, kind: Any) -> NDArray[Any]:
            values = indexed[name].to_numpy()
            return np.where(is_indexed, values[at] if len(values) else other, other).astype(kind)

        rows = column("rows", 0, np.int64)
        makers: dict[str, str] = {}
        made_by = indexed["made_by"].take(pa.array(at[is_indexed]))
        for one in made_by.unique().to_pylist():
            makers[one] = names.filter(pa.array(is_indexed))[pc.index(made_by, one).as_py()].as_py()
        if with_footers:
            missing = np.flatnonzero(~is_indexed)
            with ThreadPoolExecutor(_READERS) as readers:
                footers = readers.map(self._footer, (names[int(index)].as_py() for index in missing))
                for index, (count, maker) in zip(missing, footers, strict=True):
                    rows[index] = count
                    name = names[int(index)].as_py()
                    makers[maker] = min(makers.get(maker, name), name)
        return ListedShards(names, rows, column("file", -1, np.int32), column("place", 0, np.int32), makers)

    def codes(self, listed: ListedShards, shard: int) -> CodeLengths | None:
        """Numbers of codes of a shard's samples; None for a shard that is not in the index.

        Raises:
            MediaError: the index cannot be read.
        """
        if listed.files[shard] < 0:
            return None
        row = self._row(_file(int(listed.files[shard])), int(listed.places[shard]), _LENGTHS)
        num_clips, visual, motion = (_flat(row, name) for name in _LENGTHS)
        return CodeLengths(np.concatenate([[0], np.cumsum(num_clips)]), visual, motion)

    # ---- lengths of texts -----------------------------------------------------------------------------------------

    def files_without_texts(self, digest: str) -> list[int]:
        """Numbers of the files that have no lengths of texts for the tokenizer of a digest."""
        there = set(self._folder.names(_text_folder(digest), ".parquet"))
        return [number for number in self._numbers() if f"{number:05d}.parquet" not in there]

    def add_texts(self, digest: str, number: int, count: CountText) -> None:
        """Adds the lengths of the texts of the shards in a file. Another writer does no harm.

        Raises:
            OSError, pyarrow.ArrowException, StorageError: a shard cannot be read, or the file cannot be written.
        """

        def row(name: str) -> dict[str, Any]:
            texts = self._read(f"{TOKEN_SHARDS.folder}/{name}", ["text"])["text"].to_pylist()
            return {"shard": name, "text_tokens": count([text or "" for text in texts])}

        names = self._read(_file(number), ["shard"])["shard"].to_pylist()
        rows = [row(name) for name in names]
        self._folder.create_bytes(_file(number, _text_folder(digest)), _parquet(rows, TOKEN_TEXTS))

    def texts(self, listed: ListedShards, shard: int, digest: str) -> NDArray[np.int64]:
        """Lengths of the texts of a shard's samples, in ids of the tokenizer of a digest.

        Raises:
            MediaError: they cannot be read.
        """
        file = _file(int(listed.files[shard]), _text_folder(digest))
        return _flat(self._row(file, int(listed.places[shard]), ("text_tokens",)), "text_tokens")

    # ---- files ----------------------------------------------------------------------------------------------------

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".parquet") for name in self._folder.names(INDEX_FOLDER, ".parquet"))
        return [int(name) for name in names if name.isdecimal()]

    def _listed(self) -> pa.Table:
        """Names, rows and makers of all shards of the index, with the number of the file and the row in it."""

        def table(number: int) -> pa.Table:
            listed = self._read(_file(number), list(_LISTED))
            count = listed.num_rows
            listed = listed.append_column("file", pa.array(np.full(count, number, np.int32)))
            return listed.append_column("place", pa.array(np.arange(count, dtype=np.int32)))

        with ThreadPoolExecutor(_READERS) as readers:
            tables = list(readers.map(table, self._numbers()))
        fields = [TOKEN_INDEX.field(name) for name in _LISTED]
        empty = pa.schema([*fields, ("file", pa.int32()), ("place", pa.int32())]).empty_table()
        return pa.concat_tables([empty, *tables]).combine_chunks()

    def _row(self, file: str, place: int, columns: Sequence[str]) -> pa.Table:
        return self._tables.row(joined(self._folder.url, file), place, columns)

    def _read(self, name: str, columns: list[str]) -> pa.Table:
        with self._folder.open(name) as file:
            return ParquetReader(file).read(columns=columns)

    def _footer(self, name: str) -> tuple[int, str]:
        """Number of rows of a shard, and what made it. Raises NoTokenShard."""
        with self._folder.open(f"{TOKEN_SHARDS.folder}/{name}") as file:
            footer = pq.read_metadata(file)
        return footer.num_rows, _made_by(name, footer)

    def _index_row(self, name: str) -> dict[str, Any] | None:
        """Row of the index for a shard; None for a file that is none, or that cannot be read: a training says so."""
        try:
            with self._folder.open(f"{TOKEN_SHARDS.folder}/{name}") as file:
                reader = ParquetReader(file)
                made_by = _made_by(name, reader.metadata)
                clips = reader.read(columns=["clips"])["clips"].combine_chunks()
        except (NoTokenShard, OSError, pa.ArrowException):
            return None
        lengths = {column: list_lengths(clips.flatten().field(column)) for column in _LENGTHS[1:]}
        return {"shard": name, "rows": len(clips), "made_by": made_by, "num_clips": list_lengths(clips), **lengths}


def list_lengths(lists: pa.ListArray) -> NDArray[np.int32]:
    """Lengths of lists; 0 for a missing one."""
    lengths: NDArray[np.int32] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lengths


def _flat(row: pa.Table, column: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = row[column].combine_chunks().flatten().to_numpy().astype(np.int64)
    return values


def _made_by(name: str, footer: pq.FileMetaData) -> str:
    """Tokenizers of a shard and sizes of their codebooks, as JSON. Raises NoTokenShard."""
    metadata = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
    if metadata.get(KIND.decode()) != TOKEN_SHARDS.folder:
        raise NoTokenShard(name)
    return json.dumps({key: metadata.get(f"videolavit.{key}", "") for key in _MAKERS})


def _text_folder(digest: str) -> str:
    return f"{INDEX_FOLDER}/text-{digest}"


def _file(number: int, folder: str = INDEX_FOLDER) -> str:
    return f"{folder}/{number:05d}.parquet"


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, sink, row_group_size=SHARDS_PER_GROUP, compression="zstd", write_statistics=False)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
