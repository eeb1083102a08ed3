"""Tables of strangers that are small on the disk and large in memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_silently
from tests.records.listed import list_videos
from videolavit.records import table_files
from videolavit.records.files import InputError

READING = """
import resource, sys
from videolavit.records.storage import StorageSettings
from videolavit.records.tables import InputError, open_table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pieces = []
try:
    for rows, first, group in open_table(sys.argv[1], StorageSettings()).batches():
        pieces.append(rows.num_rows)
except InputError as error:
    pieces = "memory" in str(error) or "MiB" in str(error)
assert str(pieces) == sys.argv[2], pieces
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
assert grown < 300, f"{grown} MiB"
"""
"""Program that reads a table in a process of its own, and by how much that may grow."""


def write(folder: Path, value: str, count: int) -> Path:
    """Table with one value many times, which is in the file once."""
    names = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))
    file = folder / "m.parquet"
    pq.write_table(pa.table({"video": names}), file, compression="zstd")
    assert file.stat().st_size < 1 << 20
    return file


def test_one_huge_value_takes_no_memory_of_the_parent(tmp_path: Path) -> None:
    run_silently(READING, write(tmp_path, "x" * (400 << 20), 1), True)


def test_a_repeated_value_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    """A value of 30 KB, 20,000 times: 600 MB."""
    run_silently(READING, write(tmp_path, "x" * 30_000, 20_000), [table_files.READ_ROWS] * 10)


def test_rows_beyond_the_bound_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, "x" * 300_000, 1000)
    with pytest.raises(InputError, match="rows from 0 on have more than 256 MiB"):
        list_videos(file)
