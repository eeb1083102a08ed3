"""Foreign tables that somebody looks at: they are read as those of inputs are."""

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videolavit.media import MediaError
from videolavit.records.inspection import ShardFacts, inspect


def test_a_small_file_that_holds_much_takes_no_memory_of_this_process(tmp_path: Path) -> None:
    file = tmp_path / "bomb.parquet"
    letters = pa.DictionaryArray.from_arrays(pa.array(np.zeros(600, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": letters}), file, compression="zstd")
    assert file.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MediaError, match="have more than 256 MiB"):
        inspect(str(file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_column_twice_is_a_fault_of_the_table(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(MediaError, match="has a column twice: a, a"):
        inspect(str(tmp_path / "twice.parquet"))


@pytest.mark.parametrize("kind", ["", "plan"])
def test_a_table_without_rows_or_columns(tmp_path: Path, kind: str) -> None:
    fields = pa.schema({"video": pa.string(), "clips": pa.list_(pa.int8())}, {"videolavit.kind": kind})
    pq.write_table(fields.empty_table(), tmp_path / "empty.parquet")
    found = inspect(str(tmp_path / "empty.parquet"))
    assert isinstance(found, ShardFacts)
    assert (found.kind or "", found.num_rows, found.rows) == (kind, 0, ())
