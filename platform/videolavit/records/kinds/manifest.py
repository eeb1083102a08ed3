"""Rows of tables as sources: addresses of files, or the files themselves."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from videolavit.media import MediaError
from videolavit.media.errors import SourceMissing

from ..addresses import folder_of
from ..confinement import check_named
from ..files import InputError, resolve
from ..inputs import InputSettings, Modality
from ..names import repeated_hashes
from ..prepare import read_bytes
from ..rows import Source, listing
from ..schema import EXTRA_PREFIX, TEXTS
from ..storage import StorageSettings
from ..tables import Table, caption_column, captions, further_columns, naming_table, need_column


def list_addresses(
    kind: str,
    column: str,
    table: Table,
    rows: pa.Table,
    first: int,
    settings: InputSettings,
    reserved: frozenset[str],
) -> pa.Table:
    """Sources of rows whose `column` holds addresses.

    Raises:
        InputError: the column is missing, or holds something else.
    """
    addresses = row_addresses(column, table, rows, first)
    used = (column, caption_column(table, settings.text_column))
    columns = {
        "source": addresses,
        "url": addresses,
        "kind": kind,
        "text": captions(table, rows, settings.text_column),
    }
    return listing(columns, further_columns(table, rows, used, reserved))


def row_addresses(column: str, table: Table, rows: pa.Table, first: int) -> pa.Array:
    """Absolute addresses of rows; a row without one gets the name `TABLE#rowN`, and will be rejected."""
    need_column(table, column)
    addresses = rows[column]
    if not pa.types.is_string(addresses.type):
        raise InputError(f"the column `{column}` of {table.url} holds {addresses.type}, not addresses")
    resolved = []
    with naming_table(table.url):
        for number, address in enumerate(addresses.to_pylist(), first):
            resolved.append(resolve(address, table.folder) if address else row_name(table, number))
            if address:
                check_named(resolved[-1], table.url, table.storage.allow)
    return pa.array(resolved, pa.string())


def list_stored(
    kind: str,
    column: str | None,
    table: Table,
    rows: pa.Table,
    first: int,
    settings: InputSettings,
    reserved: frozenset[str],
    row_group: int | None = None,
) -> pa.Table:
    """Sources of rows that hold the sample themselves: a file in `column`, or a text."""
    used = (column, caption_column(table, settings.text_column))
    numbers = range(first, first + rows.num_rows)
    columns = {
        "source": [row_name(table, number) for number in numbers],
        "url": table.url,
        "kind": kind,
        "text": captions(table, rows, settings.text_column),
        "row": list(numbers),
        "row_group": None if row_group is None else [row_group] * rows.num_rows,
        "column": column,
    }
    return listing(columns, further_columns(table, rows, used, reserved))


def stored_bytes(
    value: Any, source: Source, modality: Modality, storage: StorageSettings, limit: int, too_large: type[MediaError]
) -> bytes:
    """Content of the file that a row holds, or that it names.

    Args:
        value: Bytes, or a struct of `bytes` and `path` as `datasets` stores images and videos.

    Raises:
        MediaError: the row has neither, or the named file cannot be read or has more than `limit` bytes.
    """
    held, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
    if held is not None:
        return bytes(held)
    if not path:
        raise SourceMissing(f"row {source.row} of {source.url} has no {modality}")
    address = resolve(path, folder_of(source.url))
    check_named(address, source.url, storage.allow)
    return read_bytes(address, storage, limit, too_large)


def row_name(table: Table, number: int) -> str:
    """Name of a row that has no address."""
    return f"{table.url}#row{number}"


def repeated_addresses(column: str, table: Table) -> frozenset[str]:
    """Addresses that a table names more than once. Reads it again if there are any."""

    def addresses() -> Iterator[list[str]]:
        for rows, first, _ in table.batches([column]):
            yield row_addresses(column, table, rows, first).to_pylist()

    repeated = repeated_hashes(addresses())
    if not repeated:
        return frozenset()
    return frozenset(address for batch in addresses() for address in batch if hash(address) in repeated)


def join_captions(sources: pa.Table) -> pa.Table:
    """One row for each source, that of its first appearance, with all captions in the further column `texts`."""
    places: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    named = zip(sources["source"].to_pylist(), sources["text"].to_pylist(), strict=True)
    for index, (source, text) in enumerate(named):
        places.setdefault(source, index)
        texts.setdefault(source, []).extend([] if text is None else [text])
    joined = sources.take(pa.array(places.values(), pa.int64()))
    first = pa.array([captions[0] if captions else None for captions in texts.values()], pa.string())
    joined = joined.set_column(joined.schema.get_field_index("text"), "text", first)
    return joined.append_column(EXTRA_PREFIX + TEXTS, pa.array(list(texts.values()), pa.list_(pa.string())))
