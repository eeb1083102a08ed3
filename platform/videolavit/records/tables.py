"""Tables that name or hold samples: manifests and datasets in Parquet, JSONL and CSV, read in bounded batches."""

import contextlib
import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.media.errors import MediaError

from . import schema
from .addresses import folder_of, shown
from .files import InputError, suffix_of
from .plain import NotPlain, plain_type
from .storage import StorageSettings
from .table_files import parquet_rows, plain_rows, table_content
from .text_tables import as_text, csv_typed

BATCH_ROWS = 20_000
"""Rows of a table that are listed at a time."""

CAPTIONS = ("text", "caption")
"""Columns that hold captions or texts, unless the settings name another."""


@dataclass(frozen=True)
class Table:
    """A table that an input names, without its rows.

    Args:
        url: Address of the file.
        fields: Columns and their plain types.
        made_by: Kind of shard, if this project wrote the file.
        num_rows: Number of rows.
        left_out: Columns that are not read, and why; columns of which only some batches are not join them on the way.
        rows: Rows of a table in text; None for Parquet, whose rows are read when they are needed.
    """

    url: str
    fields: pa.Schema
    made_by: str
    storage: StorageSettings
    num_rows: int
    left_out: dict[str, str]
    rows: pa.Table | None = None

    @property
    def names(self) -> list[str]:
        return list(self.fields.names)

    @property
    def folder(self) -> str:
        """Address of the folder that the table's relative addresses start at."""
        return folder_of(self.url)

    def holds_bytes(self, column: str) -> bool:
        """True if a column has files: as binary, or as structs with `bytes`."""
        index = self.fields.get_field_index(column)
        return index >= 0 and holds_bytes(self.fields.field(index).type)

    def batches(
        self, columns: Sequence[str] | None = None, without: str | None = None
    ) -> Iterator[tuple[pa.Table, int, int]]:
        """Rows in batches of plain columns, each with the number of its first row and of its row group.

        Args:
            columns: Columns to read; None for all.
            without: Column that is not read.

        Raises:
            InputError: the file cannot be read.
        """
        chosen = [name for name in (self.names if columns is None else columns) if name != without]
        with naming_table(self.url):
            if self.rows is not None:
                rows = self.rows.select(chosen)
                for start in range(0, rows.num_rows, BATCH_ROWS):
                    plain, left_out = plain_rows(rows.slice(start, BATCH_ROWS))
                    self.left_out.update(left_out)
                    yield plain, start, 0
                return
            for some in parquet_rows(self.url, self.storage, chosen):
                self.left_out.update(some.left_out)
                yield some.rows, some.first, some.group

    def typed(self, text_columns: Collection[str]) -> "Table":
        """The table with the types that its values have; those of Parquet stay.

        Args:
            text_columns: Columns that are text, whatever their values look like.
        """
        if self.rows is None:
            return self
        is_csv = suffix_of(self.url) == ".csv"
        columns = {}
        for name, column in zip(self.names, self.rows.columns, strict=True):
            if name in text_columns:
                columns[name] = as_text(column)
            else:
                columns[name] = csv_typed(column) if is_csv else column
        rows = pa.table(columns)
        return replace(self, fields=_plain_fields(rows.schema)[0], rows=rows)


def open_table(url: str, storage: StorageSettings) -> Table:
    """Reads what a table has: of Parquet the footer only. Columns of CSV are text.

    Raises:
        InputError: it cannot be read.
    """
    with naming_table(url):
        content = table_content(url, storage)
    written = content.columns.schema
    if len(set(written.names)) < len(written.names):
        raise InputError(f"the manifest {url} has a column twice: {', '.join(written.names)}")
    fields, left_out = _plain_fields(written)
    return Table(url, fields, schema.kind_of(written), storage, content.num_rows, left_out, content.rows)


def _plain_fields(fields: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
    """Columns in their plain types, and why the others have none."""
    plain, left_out = [], {}
    for one in fields:
        try:
            plain.append(pa.field(one.name, plain_type(one.type)))
        except NotPlain as error:
            left_out[one.name] = str(error)
    return pa.schema(plain), left_out


@contextlib.contextmanager
def naming_table(url: str) -> Iterator[None]:
    """Turns what goes wrong with a table into an InputError that names it."""
    try:
        yield
    except (MediaError, pa.ArrowException, ValueError, csv.Error) as error:
        raise InputError(f"cannot read the manifest {shown(url)}: {error}") from None


def captions(table: Table, rows: pa.Table, text_column: str | None) -> pa.Array | pa.ChunkedArray:
    """Captions of rows: of the column that was named, or else of `text` or `caption`; nulls where there is none."""
    name = caption_column(table, text_column)
    if name is None:
        return pa.nulls(rows.num_rows, pa.string())
    with naming_table(table.url):
        written = rows[name]
        if pa.types.is_floating(written.type):
            written = pc.if_else(pc.is_nan(written), None, written)
        return written.cast(pa.string())


def caption_column(table: Table, text_column: str | None) -> str | None:
    """Column that holds the captions.

    Raises:
        InputError: the table lacks the column that was named.
    """
    need_column(table, text_column)
    return text_column or next((name for name in CAPTIONS if name in table.names), None)


def need_column(table: Table, name: str | None) -> None:
    """Raises InputError if a table lacks a column."""
    if name in table.left_out:
        raise InputError(f"the column `{name}` of {table.url} {table.left_out[name]}, which is not read")
    if name is not None and name not in table.names:
        raise InputError(f"the manifest {table.url} has no column `{name}`; it has {', '.join(table.names)}")


def further_columns(
    table: Table, rows: pa.Table, used: Sequence[str | None], reserved: frozenset[str]
) -> dict[str, pa.ChunkedArray]:
    """Columns that travel to the shards, by their names there.

    Args:
        used: Columns that the kind of input reads itself.
        reserved: Columns of the shards; a further column of such a name is called `manifest_NAME`.

    Raises:
        InputError: two columns would have one name.
    """
    further: dict[str, pa.ChunkedArray] = {}
    for name in rows.column_names:
        if name in used or not name:
            continue
        shard_name = f"manifest_{name}" if name in reserved else name
        if shard_name in further:
            raise InputError(f"the manifest {table.url} has both `{name}` and `{shard_name}`; rename one")
        further[shard_name] = rows[name]
    return further


def holds_bytes(kind: pa.DataType) -> bool:
    """True for binary, and for structs that have `bytes`, as `datasets` stores images and videos."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
