"""Tables in text, JSON lines and CSV, with the types that their values have."""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from .files import readable

_ROWS = 20_000
"""Rows of JSON that are held as Python objects at a time."""

_CSV_BLOCK = 64 << 20
"""Bytes of CSV that are parsed at a time; a row must fit."""

_CSV_TYPES = (
    (pa.int64(), r"^(-?[1-9][0-9]*|0)$"),
    (pa.float64(), r"^-?((0|[1-9][0-9]*)?\.[0-9]+([eE][-+]?[0-9]+)?|(0|[1-9][0-9]*)([eE][-+][0-9]+)?|inf)$"),
    (pa.bool_(), r"^(true|false|True|False|TRUE|FALSE)$"),
)
"""Types of columns of CSV, and the form that all values of a column must have. Everything else stays text: dates and
times, codes with leading zeros, hexadecimal digits that look like a number (`1e10`)."""


def read_csv(data: bytes) -> pa.Table:
    """Table of a CSV file, every column as text.

    Raises:
        pyarrow.ArrowInvalid, UnicodeDecodeError, csv.Error: it is no CSV in UTF-8.
    """
    header = next(csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")), [])
    return pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(block_size=max(min(len(data), _CSV_BLOCK), 1)),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
    )


def csv_typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as whole numbers, floating-point numbers or truth values, if all of its values are written so."""
    values = pc.if_else(pc.is_in(column, pa.array(pa.csv.ConvertOptions().null_values)), None, column)
    if values.null_count == len(values):
        return values
    for kind, form in _CSV_TYPES:
        if pc.all(pc.match_substring_regex(values, form)).as_py():
            with contextlib.suppress(pa.ArrowInvalid):  # beyond 64 bits
                return values.cast(kind)
    return column


def read_json(data: bytes) -> pa.Table:
    """Table of JSON lines, which are read twice: for the types of columns, and for the values.

    Values of one column that have no common type become text, those that were no text as JSON; so do objects without
    members, which Parquet cannot store. NaN is null.

    Raises:
        ValueError: a line is no JSON object; the message has its number.
    """
    types: dict[str, pa.DataType] = {}
    for columns in _json_columns(data):
        for name, values in columns.items():
            types[name] = _common_type(types.get(name, pa.null()), _type_of(values))
    fields = pa.schema([(name, pa.string() if _is_empty(kind) else kind) for name, kind in types.items()])
    batches = []
    for columns in _json_columns(data):
        count = len(next(iter(columns.values()), []))
        arrays = [_json_array(columns.get(one.name, [None] * count), one.type) for one in fields]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=fields))
    return pa.Table.from_batches(batches, fields)


def _json_columns(data: bytes) -> Iterator[dict[str, list[Any]]]:
    """Values of some rows at a time, by column."""
    lines = ((number, line) for number, line in enumerate(io.BytesIO(data), 1) if line.strip())
    while some := list(itertools.islice(lines, _ROWS)):
        rows = [_json_object(number, line) for number, line in some]
        names = dict.fromkeys(name for row in rows for name in row)
        yield {readable(name): [row.get(name) for row in rows] for name in names}


def _json_object(number: int, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"line {number} is no JSON object")
    return values


def _type_of(values: Sequence[Any]) -> pa.DataType:
    try:
        return pa.array(values, from_pandas=True).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.string()


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _is_empty(kind: pa.DataType) -> bool:
    """True for a struct without fields, and for one or a list that holds such."""
    nested = [kind.field(index).type for index in range(kind.num_fields)]
    return (pa.types.is_struct(kind) and not nested) or any(map(_is_empty, nested))


def _json_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError):
        if pa.types.is_string(kind):
            return pa.array([_text(value) for value in values], kind)
        return pa.array(values, from_pandas=True).cast(kind, safe=False)  # whole numbers beside fractions


def _text(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    return readable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as text; lists stay what they are."""
    return column if pa.types.is_nested(column.type) else column.cast(pa.string())
