"""Files of tables, which child processes read: a few bytes of a stranger can take any amount of memory."""

import contextlib
import csv
import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from videolavit.media.errors import MediaError
from videolavit.sandbox import serving
from videolavit.sandbox.call import IsolatedIterator
from videolavit.sandbox.pool import ChildPool
from videolavit.sandbox.sendable import sendable

from .files import suffix_of
from .parquet import ParquetReader
from .plain import NotPlain, plain_column, plain_type
from .source_files import SourceFiles, isolated, naming_faults
from .storage import StorageSettings, open_source
from .table_reader import CorruptTable
from .text_tables import read_csv, read_json

READ_ROWS = 2000
"""Rows of Parquet that are read at a time."""

MAX_ROWS_BYTES = 256 << 20
"""Largest size of rows that are read at a time, in bytes. Rows that hold files are read elsewhere, without these."""

READ_SECONDS = 600.0
"""Longest time of reading a table in text, or the next rows of one in Parquet, in seconds."""


@sendable
@dataclass(frozen=True)
class TableContent:
    """Content of a table.

    Args:
        columns: Columns without rows, with the metadata of the file.
        num_rows: Number of rows.
        rows: Rows of a table in text; None for Parquet.
    """

    columns: pa.Table
    num_rows: int
    rows: pa.Table | None


def table_content(url: str, storage: StorageSettings) -> TableContent:
    """Reads what a table has: of Parquet the footer only. Raises MediaError."""
    if serving.parent is not None:  # this is a child process already
        return _content(url, storage)
    with naming_faults():
        content: TableContent = _pool(storage)(url, storage, time_limit=READ_SECONDS)
    return content


@sendable
@dataclass(frozen=True)
class TableRows:
    """Rows of a table, in plain columns.

    Args:
        rows: Rows; a column that has no plain values is null.
        first: Number of the first row.
        group: Number of their row group.
        left_out: Columns that have no plain values, and why.
    """

    rows: pa.Table
    first: int
    group: int
    left_out: dict[str, str]


def parquet_rows(url: str, storage: StorageSettings, columns: Sequence[str]) -> Generator[TableRows, None, None]:
    """Rows of a Parquet file. Raises MediaError.

    Args:
        columns: Columns to read; of none, the rows have one column of nulls.
    """
    if serving.parent is not None:
        yield from _rows(url, storage, columns)
        return
    child = IsolatedIterator(_rows, SourceFiles(storage), errors=(MediaError,))
    with contextlib.closing(child), naming_faults():
        yield from child(url, storage, list(columns), time_limit=READ_SECONDS)


@functools.cache
def _pool(storage: StorageSettings) -> ChildPool[*tuple[Any, ...], Any]:
    return ChildPool(lambda: isolated(_content, storage))


def plain_rows(rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """Rows in plain columns, and the columns that have no plain values, which are null, with the reasons."""
    columns, left_out = {}, {}
    for name in rows.column_names:
        try:
            columns[name] = plain_column(rows[name])
        except NotPlain as error:
            left_out[name] = str(error)
            columns[name] = pa.nulls(rows.num_rows, plain_type(rows.schema.field(name).type))
    return pa.table(columns), left_out


# ---- in a child -----------------------------------------------------------------------------------------------------


def _content(url: str, storage: StorageSettings) -> TableContent:
    with _corrupt(), open_source(url, storage) as file:
        if suffix_of(url) == ".parquet":
            parquet = ParquetReader(file)
            return TableContent(parquet.schema_arrow.empty_table(), parquet.metadata.num_rows, None)
        rows = (read_csv if suffix_of(url) == ".csv" else read_json)(file.read())
        return TableContent(rows.schema.empty_table(), rows.num_rows, rows)


def _rows(url: str, storage: StorageSettings, columns: Sequence[str]) -> Iterator[TableRows]:
    with _corrupt(), open_source(url, storage) as file:
        parquet, first = ParquetReader(file), 0
        for group in range(parquet.num_row_groups):
            end = first + parquet.metadata.row_group(group).num_rows
            if not columns:  # the only column holds files
                yield TableRows(pa.table({"": pa.nulls(end - first)}), first, group, {})
            else:
                for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
                    plain, left_out = plain_rows(pa.Table.from_batches([batch]))
                    if plain.nbytes > MAX_ROWS_BYTES:
                        raise CorruptTable(f"rows from {first} on have more than {MAX_ROWS_BYTES >> 20} MiB")
                    yield TableRows(plain, first, group, left_out)
                    first += batch.num_rows
            first = end


@contextlib.contextmanager
def _corrupt() -> Iterator[None]:
    """Turns what is wrong with a file into a CorruptTable."""
    try:
        yield
    except MediaError:
        raise
    except (pa.ArrowException, ValueError, csv.Error) as error:
        raise CorruptTable(str(error)) from None
