"""Columns of manifests in their plain types."""

import io
import uuid
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.records.listed import videos
from videolavit.records.plain import NotPlain, plain_column, plain_type

UUID = uuid.UUID("fc14336d-77d7-4ff1-afba-f9ce474380c2")
MORE_DIGITS = "1" + "0" * 39 + "1"


def _text(data: bytes) -> pa.Array:
    """Text as a foreign writer may store it, without a check that it is UTF-8."""
    offsets = pa.array([0, len(data)], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(data)])


DICTIONARY = pa.array(["x"]).dictionary_encode()
TRAVELS = {
    "embedding": (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), pa.list_(pa.float32()), [1.0, 2.0]),
    "decimal": (pa.array([Decimal("0.5")]), pa.decimal128(1, 1), Decimal("0.5")),
    "long decimal": (pa.array([Decimal(MORE_DIGITS)], pa.decimal256(50)), pa.string(), MORE_DIGITS),
    "json": (pa.array(["{}"], pa.json_()), pa.string(), "{}"),
    "uuid": (pa.array([UUID.bytes], pa.uuid()), pa.string(), str(UUID)),
    "list of large texts": (pa.array([["a"]], pa.large_list(pa.large_string())), pa.list_(pa.string()), ["a"]),
    "struct": (
        pa.array([{"a": "x"}], pa.struct([("a", pa.large_string())])),
        pa.struct([("a", pa.string())]),
        {"a": "x"},
    ),
    "struct of categories": (
        pa.StructArray.from_arrays([DICTIONARY], ["a"]),
        pa.struct([("a", pa.string())]),
        {"a": "x"},
    ),
    "map": (
        pa.array([[("k", 1)]], pa.map_(pa.large_string(), pa.int8())),
        pa.map_(pa.string(), pa.int8()),
        [("k", 1)],
    ),
    "large binary": (pa.array([b"a"], pa.large_binary()), pa.binary(), b"a"),
    "fixed binary": (pa.array([b"1234"], pa.binary(4)), pa.binary(), b"1234"),
    "time": (pa.array([5], pa.time32("s")), pa.time32("ms"), pa.scalar(5, pa.time32("s")).as_py()),
    "duration": (pa.array([5], pa.duration("s")), pa.duration("s"), timedelta(seconds=5)),
    "half": (pa.array([1.5], pa.float16()), pa.float32(), 1.5),
    "seconds": (pa.array([5], pa.timestamp("s")), pa.timestamp("ms"), pa.scalar(5, pa.timestamp("s")).as_py()),
    "zone": (pa.array([5], pa.timestamp("us", "Asia/Tokyo")), pa.timestamp("us", "Asia/Tokyo"), None),
    "nothing": (pa.array([None]), pa.string(), None),
    "empty lists": (pa.array([[]]), pa.list_(pa.string()), []),
    "text that is not UTF-8": (_text(b"caf\xe9"), pa.string(), r"caf\xe9"),
}


@pytest.mark.parametrize("name", TRAVELS)
def test_a_column_keeps_its_values_and_parquet_its_type(name: str) -> None:
    column, kind, value = TRAVELS[name]
    plain = plain_column(pa.chunked_array([column]))
    assert plain.type == kind == plain_type(kind)
    assert value is None or plain.to_pylist() == [value]
    sink = io.BytesIO()
    pq.write_table(pa.table({"c": plain}), sink)
    assert pq.read_table(sink).schema.field("c").type == kind
    assert pa.array(plain.to_pylist(), kind).equals(plain.combine_chunks())  # rows travel as Python values


LEFT_OUT: dict[str, Any] = {
    "far future": pa.array([1 << 60], pa.timestamp("ms")),
    "list of far futures": pa.array([[1 << 60]], pa.list_(pa.timestamp("ms"))),
    "age of the universe": pa.array([1 << 60], pa.duration("s")),
    "zone of no map": pa.array([5], pa.timestamp("us", "Mars/Olympus")),
    "list of broken text": pa.ListArray.from_arrays([0, 1], _text(b"\xff")),
    "list view": pa.array([["a"]], pa.list_view(pa.string())),
}


def test_a_column_that_cannot_travel_is_left_out_by_name(tmp_path: Path) -> None:
    for column in LEFT_OUT.values():
        with pytest.raises(NotPlain):
            plain_column(pa.chunked_array([column]))
    pq.write_table(pa.table({"video": ["a.mp4"], **LEFT_OUT, "id": [7]}), tmp_path / "m.parquet")
    listing = videos([tmp_path / "m.parquet"])
    (batch,) = listing
    (row,) = batch.to_pylist()
    assert (row["extra.id"], row["extra.far future"], "extra.list view" in row) == (7, None, False)
    assert len(listing.left_out) == len(LEFT_OUT)
    for name in LEFT_OUT:
        assert any(line.startswith(f"the column `{name}` of {tmp_path}/m.parquet ") for line in listing.left_out)
