"""Plain columns: types that Parquet gives back as they were and that its readers know, values that Python has."""

import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class NotPlain(ValueError):
    """The column cannot travel; the message says why."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type for values of a type.

    Raises:
        NotPlain: there is none.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if isinstance(kind, pa.UuidType) else plain_type(kind.storage_type)
    if types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_fixed_size_binary(kind) or types.is_binary(kind):
        return pa.binary()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= 38 else pa.string()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_date(kind):
        return pa.date32()
    if types.is_time(kind):
        return pa.time32("ms") if types.is_time32(kind) else pa.time64("us")
    if types.is_timestamp(kind):
        return pa.timestamp("ms", kind.tz) if kind.unit == "s" else kind
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_duration(kind):
        return kind
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_struct(kind) and kind.num_fields:
        return pa.struct([(one.name, plain_type(one.type)) for one in kind])
    raise NotPlain(f"is of the type {kind}")


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in its plain type. Digits below a microsecond of times of day are cut.

    Raises:
        NotPlain: it has no plain type, or holds values out of range or, inside of lists or structs, text that is not
            UTF-8.
    """
    kind = plain_type(column.type)
    try:
        if _holds_uuids(column.type):
            return pa.chunked_array([pa.array([_uuids_as_text(one) for one in column.to_pylist()], kind)])
        plain = column.cast(kind, safe=not pa.types.is_time64(kind))
        if pa.types.is_string(kind) and _is_not_utf8(plain):
            values = plain.cast(pa.binary()).to_pylist()
            readable = [None if one is None else one.decode("utf-8", "backslashreplace") for one in values]
            return pa.chunked_array([pa.array(readable, kind)])
        plain.validate(full=True)
        for chunk in plain.chunks:
            _check_range(chunk)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise NotPlain(f"holds values that cannot be read: {error}") from None
    return plain


def _is_not_utf8(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def _check_range(array: pa.Array) -> None:
    """Raises ValueError or OverflowError for points in time and durations that Python has no value for."""
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        bounds = pc.min_max(array.view(pa.int64())).as_py()
        pa.array(bounds.values(), pa.int64()).view(kind).to_pylist()
    elif pa.types.is_map(kind):
        _check_range(array.keys)
        _check_range(array.items)
    elif pa.types.is_list(kind):
        _check_range(array.flatten())
    elif pa.types.is_struct(kind):
        for part in array.flatten():
            _check_range(part)


def _holds_uuids(kind: pa.DataType) -> bool:
    children = [kind.field(index).type for index in range(kind.num_fields)]
    return isinstance(kind, pa.UuidType) or any(map(_holds_uuids, children))


def _uuids_as_text(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dict):
        return {name: _uuids_as_text(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_uuids_as_text(one) for one in value)
    return value
