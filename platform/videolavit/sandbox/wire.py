"""Values as bytes that cannot execute: what a child process answers, read by its parent as data from a stranger.

A value is JSON, whose arrays, tables and bytes refer to the buffers behind it. Objects are rebuilt only as one of the
classes that are `sendable`, from fields of the declared types.
"""

import dataclasses
import json
import re
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from .sendable import CLASSES

_HEAD = struct.Struct("<I")
_OFFSET, _SIGNED, _SHORT = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<H")
_HEADER, _DICTIONARY_DATA, _COMPRESSION = 2, 1, 3
"""Numbers of fields in Arrow's flatbuffers: the header of a Message, the data of a DictionaryBatch, and the compression
of a RecordBatch."""

_WRONG = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError, OSError),
    *(struct.error, pa.ArrowException),
)
"""Errors of bytes that are no value; Arrow has OSErrors among its own."""

_DTYPE = re.compile(r"[<>|]?[biuf][1248]")


class WireError(Exception):
    """The bytes are no value, or one that nobody sends."""


# ---- writing ------------------------------------------------------------------------------------------------------


def encode(value: Any) -> list[memoryview]:
    """Turns a value into parts of a message. Buffers of arrays are not copied.

    Raises:
        TypeError: the value is of a class that is not sendable.
    """
    writer = _Writer()
    head = json.dumps(writer.tree(value)).encode()
    return [memoryview(_HEAD.pack(len(head)) + head), *writer.buffers]


class _Writer:
    def __init__(self) -> None:
        self.buffers: list[memoryview] = []
        self._size = 0

    def tree(self, value: Any) -> Any:
        """JSON of a value: what JSON has as it is, the rest as an object with the key `is`."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list):
            return [self.tree(item) for item in value]
        if isinstance(value, tuple):
            return {"is": "tuple", "items": [self.tree(item) for item in value]}
        if isinstance(value, dict):
            return {"is": "dict", "items": [[self.tree(key), self.tree(one)] for key, one in value.items()]}
        if isinstance(value, bytes | bytearray | memoryview):
            return {"is": "bytes", "at": self._buffer(memoryview(value).cast("B"))}
        if isinstance(value, np.generic):
            return self.tree(value.item())
        if isinstance(value, np.ndarray) and _DTYPE.fullmatch(value.dtype.str):
            plain = np.ascontiguousarray(value)
            at = self._buffer(memoryview(plain.reshape(-1).view(np.uint8).data))
            return {"is": "array", "type": plain.dtype.str, "shape": list(value.shape), "at": at}
        if isinstance(value, pa.Table):
            return {"is": "table", "at": self._stream(value)}
        if isinstance(value, pa.Array):
            return {"is": "column", "at": self._stream(pa.table({"": value}))}
        kind: type = type(value)
        if CLASSES.get(kind.__qualname__) is kind:
            names = _field_types(kind)
            fields = {name: self.tree(getattr(value, name)) for name in names}
            return {"is": "object", "class": kind.__qualname__, "fields": fields}
        return {"is": "scalar", "at": self._stream(_one_row(value))}

    def _stream(self, table: pa.Table) -> list[int]:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return self._buffer(memoryview(sink.getvalue()))

    def _buffer(self, data: memoryview) -> list[int]:
        """Appends a buffer; returns its place behind the JSON, and its length."""
        place = [self._size, data.nbytes]
        self.buffers.append(data)
        self._size += data.nbytes
        return place


def _one_row(value: Any) -> pa.Table:
    """A table that holds a value which Arrow knows, such as a date."""
    try:
        return pa.table({"": pa.array([value])})
    except pa.ArrowException:
        raise TypeError(f"a {type(value).__qualname__} cannot be sent") from None


# ---- reading ------------------------------------------------------------------------------------------------------


def decode(message: memoryview) -> Any:
    """Reads a value. Arrays and bytes are views of the message.

    Raises:
        WireError: it is no value.
    """
    try:
        (length,) = _HEAD.unpack(message[: _HEAD.size])
        tree = json.loads(bytes(message[_HEAD.size : _HEAD.size + length]))
        return _Reader(message[_HEAD.size + length :]).value(tree)
    except WireError:
        raise
    except _WRONG as error:
        raise WireError(f"{type(error).__name__}: {error}") from None


class _Reader:
    def __init__(self, buffers: memoryview) -> None:
        self._buffers = buffers
        self._kinds: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "tuple": lambda tree: tuple(map(self.value, tree["items"])),
            "dict": lambda tree: {self.value(key): self.value(one) for key, one in tree["items"]},
            "bytes": lambda tree: bytes(self._part(tree)),
            "array": self._array,
            "table": self._table,
            "column": lambda tree: self._table(tree).column(0).combine_chunks(),
            "scalar": lambda tree: self._table(tree).column(0)[0].as_py(),
            "object": self._object,
        }

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return list(map(self.value, tree))
        return self._kinds[tree["is"]](tree) if isinstance(tree, dict) else tree

    def _part(self, tree: Mapping[str, Any]) -> memoryview:
        start, length = tree["at"]
        if type(start) is not int or type(length) is not int or not 0 <= start <= start + length <= len(self._buffers):
            raise WireError("a buffer lies outside of the message")
        return self._buffers[start : start + length]

    def _array(self, tree: Mapping[str, Any]) -> Any:
        if not _DTYPE.fullmatch(tree["type"]):
            raise WireError("an array of another type than numbers")
        return np.frombuffer(self._part(tree), np.dtype(tree["type"])).reshape(tree["shape"])

    def _table(self, tree: Mapping[str, Any]) -> pa.Table:
        data = pa.py_buffer(self._part(tree))
        _refuse_compressed(data)
        table = pa.ipc.open_stream(data).read_all()
        table.validate(full=True)  # offsets from a stranger may point anywhere
        return table

    def _object(self, tree: Mapping[str, Any]) -> Any:
        kind = CLASSES[tree["class"]]
        fields = {name: self.value(value) for name, value in tree["fields"].items()}
        for name, expected in _field_types(kind).items():
            if not _fits(fields[name], expected):
                raise WireError(f"{kind.__qualname__}.{name} has another type than it is declared with")
        return kind(**fields)


def _refuse_compressed(stream: pa.Buffer) -> None:
    """Raises WireError for a stream of Arrow with compressed buffers: a short one could take any amount of memory."""
    for message in pa.ipc.MessageReader.open_stream(stream):
        metadata = message.metadata.to_pybytes()  # Arrow has verified that its offsets lie inside
        (root,) = _OFFSET.unpack_from(metadata)
        header = _followed(metadata, _field(metadata, root, _HEADER))
        if message.type == "dictionary":
            header = _followed(metadata, _field(metadata, header, _DICTIONARY_DATA))
        if message.type in ("dictionary", "record batch") and _field(metadata, header, _COMPRESSION):
            raise WireError("a table with compressed buffers")


def _field(flat: bytes, table: int, number: int) -> int:
    """Place of a field of a flatbuffers table; 0 if it has none."""
    places = table - _SIGNED.unpack_from(flat, table)[0]
    (size,) = _SHORT.unpack_from(flat, places)
    at = 4 + 2 * number
    relative = _SHORT.unpack_from(flat, places + at)[0] if at < size else 0
    return table + relative if relative else 0


def _followed(flat: bytes, place: int) -> int:
    """Place that an offset points to."""
    return place + int(_OFFSET.unpack_from(flat, place)[0])


@cache
def _field_types(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, expected: Any) -> bool:
    """True if a value is of a declared type. The items of arrays and tables are numbers or were validated."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected is Any or isinstance(expected, TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if expected is float:
        return type(value) in (int, float)
    if origin is tuple and arguments[-1:] != (...,):
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if isinstance(value, Mapping) and arguments:
        key, item = arguments
        return isinstance(value, origin) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and arguments:
        return isinstance(value, origin) and all(_fits(item, arguments[0]) for item in value)
    plain = origin or expected
    return value is None if plain in (None, types.NoneType) else isinstance(value, plain)
