"""Parquet files that are read on the calling thread."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


class ParquetReader(pq.ParquetFile):  # type: ignore[misc]
    """Parquet file that is read on the calling thread.

    Arrow's own threads hold a Python file for a moment longer than a read takes, and let go of it with Python's lock.
    A process that ends in that moment is aborted by the C++ runtime: "terminate called without an active exception".

    Args:
        file: Binary file, or a native one of Arrow's.
        options: Further options of `pyarrow.parquet.ParquetFile`.
    """

    def __init__(self, file: BinaryIO | pa.NativeFile, **options: Any) -> None:
        super().__init__(file, pre_buffer=False, **options)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        return super().read(columns=_listed(columns), use_threads=False)

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        return super().read_row_group(group, columns=_listed(columns), use_threads=False)

    def read_row_groups(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        return super().read_row_groups(list(groups), columns=_listed(columns), use_threads=False)

    def iter_batches(
        self, batch_size: int, row_groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        groups = None if row_groups is None else list(row_groups)
        return super().iter_batches(batch_size, groups, _listed(columns), use_threads=False)  # type: ignore[no-any-return]


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
