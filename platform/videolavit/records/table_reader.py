"""Rows of Parquet files by their number, without holding whole files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from videolavit.media import MediaError
from videolavit.recent import Recent

from .parquet import ParquetReader
from .storage import StorageSettings, open_source


class CorruptTable(MediaError):
    """A Parquet file that cannot be read."""


class SourceChanged(MediaError):
    """The table is not what it was when it was listed."""


class TableReader:
    """Reads single rows. Several threads may share a reader.

    Args:
        keep: Row groups that stay in memory, the last used ones.
    """

    def __init__(self, storage: StorageSettings, keep: int = 1) -> None:
        self._storage = storage
        self._footer = Recent(self._read_footer, max(keep, 1))
        self._group = Recent(self._read_group, max(keep, 1))

    def row(self, url: str, number: int, columns: Sequence[str]) -> pa.Table:
        """One row of a file.

        Raises:
            MediaError: there is no such file or row, or it cannot be read.
        """
        try:
            _, starts = self._footer(url)
            if number >= starts[-1]:
                raise SourceChanged(f"{url} has no row {number} any more")
            group = int(np.searchsorted(starts, number, side="right")) - 1
            return self._group(url, group, tuple(columns)).slice(number - int(starts[group]), 1)
        except pa.ArrowException as error:
            raise CorruptTable(f"cannot read row {number} of {url}: {error}") from None

    def _read_footer(self, url: str) -> tuple[Any, NDArray[np.int64]]:
        """The footer, and the first row of each row group and of what would follow."""
        with open_source(url, self._storage) as file:
            footer = pq.read_metadata(file)
        return footer, np.cumsum([0, *(footer.row_group(index).num_rows for index in range(footer.num_row_groups))])

    def _read_group(self, url: str, group: int, columns: tuple[str, ...]) -> pa.Table:
        with open_source(url, self._storage) as file:
            return ParquetReader(file, metadata=self._footer(url)[0]).read_row_group(group, columns=columns)
