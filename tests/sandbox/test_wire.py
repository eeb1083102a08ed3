"""Answers of children as data from strangers."""

import json
import struct

import pyarrow as pa
import pytest

from videolavit.sandbox.wire import WireError, decode, encode


def sent(value: object) -> object:
    return decode(memoryview(b"".join(encode(value))))


def answer_of(table: pa.Table, codec: str | None) -> memoryview:
    """Message with a table whose buffers a child has compressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as stream:
        stream.write_table(table)
    data = sink.getvalue().to_pybytes()
    head = json.dumps({"is": "table", "at": [0, len(data)]}).encode()
    return memoryview(struct.pack("<I", len(head)) + head + data)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "dictionary"])
def test_compressed_tables_are_refused(codec: str, encoded: bool) -> None:
    """A hundred kilobytes could become gigabytes in the parent."""
    column = pa.array(["x" * 1000] * 1000)
    table = pa.table({"a": column.dictionary_encode() if encoded else column})
    assert decode(answer_of(table, None)).equals(table)
    with pytest.raises(WireError, match="compressed"):
        decode(answer_of(table, codec))


def test_tables_and_arrays_arrive() -> None:
    table = pa.table({"a": [1, None], "b": [["x"], []], "c": [{"d": 1.5}, None]})
    received = sent({"table": table, "column": table["a"].combine_chunks()})
    assert isinstance(received, dict)
    assert received["table"].equals(table)
    assert received["column"].equals(table["a"].combine_chunks())


def test_a_cut_or_changed_stream_is_no_table() -> None:
    good = bytes(answer_of(pa.table({"a": [1, 2, 3]}), None))
    for place in range(40, len(good), 7):
        changed = bytearray(good)
        changed[place] ^= 0xFF
        for data in (bytes(changed), good[:place]):
            try:
                decode(memoryview(data))
            except WireError:
                continue
