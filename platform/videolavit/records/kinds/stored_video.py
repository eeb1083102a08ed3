"""Videos inside Parquet: a column of bytes, or of structs with `bytes` and `path` as `datasets` stores videos."""

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO

import pyarrow as pa

from videolavit.media import MediaError

from ..inputs import InputSettings
from ..parquet import ParquetReader
from ..pictures import MAX_FILE_BYTES
from ..rows import Source
from ..storage import StorageSettings, open_file, reading
from ..table_reader import CorruptTable, SourceChanged
from ..tables import Table
from .manifest import list_stored, stored_bytes
from .video import VIDEO_COLUMN, VideoKind

_ROW = re.compile(r"(.+)#row(\d+)")

COLUMN_READ_AHEAD = 1 << 20
"""Bytes of a column that are read at a time."""


class VideoTooLarge(MediaError):
    """The video is larger than what is read from a table."""


class StoredVideo(VideoKind):
    """A video in a row of a Parquet file. A row group is read from front to back, one video at a time."""

    name = "stored_video"
    shard_by = ("url", "row_group")

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return settings.may_be("video") and table.holds_bytes(VIDEO_COLUMN)

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        return list_stored(self.name, VIDEO_COLUMN, table, rows, first, settings, reserved, group)

    @contextlib.contextmanager
    def opened(self, source: Source, storage: StorageSettings) -> Iterator[BinaryIO]:
        assert source.row is not None
        value = _reader(storage).value(source.url, source.row, source.column or VIDEO_COLUMN)
        yield io.BytesIO(stored_bytes(value, source, "video", storage, MAX_FILE_BYTES, VideoTooLarge))

    def names(self, source: str) -> bool:
        return _ROW.fullmatch(source) is not None

    def open(self, source: str, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        """Opens the video of `TABLE#rowN`."""
        found = _ROW.fullmatch(source)
        assert found is not None
        row = Source(source=source, url=found[1], kind=self.name, row=int(found[2]))
        return self.opened(row, storage)


class ForwardReader:
    """Values of a Parquet column, asked for in the order of rows: each row group is read once, a value at a time.

    Asking for the last value again costs nothing. Going back reads the row group from its start.
    """

    def __init__(self, storage: StorageSettings) -> None:
        self._storage = storage
        self._open: tuple[str, str] | None = None
        self._stack = ExitStack()
        self._values: Iterator[Any] = iter(())
        self._next = self._end = 0
        self._last: tuple[int, Any] = (-1, None)

    def value(self, url: str, row: int, column: str) -> Any:
        """The value of a row.

        Raises:
            MediaError: there is no such file or row, or it cannot be read.
        """
        number, value = self._last
        if self._open == (url, column) and row == number:
            return value
        try:
            with reading(url):
                if self._open != (url, column) or row < number or row >= self._end:
                    self._start(url, column, row)
                while self._next <= row:
                    self._last = (self._next, next(self._values))
                    self._next += 1
        except BaseException:
            self._close()
            raise
        return self._last[1]

    def _start(self, url: str, column: str, row: int) -> None:
        """Opens the row group of a row."""
        self._close()
        try:
            file = self._stack.enter_context(open_file(url, self._storage))
            parquet = ParquetReader(file, buffer_size=COLUMN_READ_AHEAD)
        except pa.ArrowException as error:
            raise CorruptTable(f"cannot read {url}: {error}") from None
        first = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if row < first + size:
                break
            first += size
        else:
            raise SourceChanged(f"{url} has no row {row} any more")
        self._open, self._next, self._end = (url, column), first, first + size
        self._values = _values(parquet, group, column, url)

    def _close(self) -> None:
        self._stack.close()
        self._open, self._last, self._values = None, (-1, None), iter(())


def _values(parquet: ParquetReader, group: int, column: str, url: str) -> Iterator[Any]:
    try:
        for batch in parquet.iter_batches(batch_size=1, row_groups=[group], columns=[column]):
            yield batch.column(0)[0].as_py()
    except pa.ArrowException as error:
        raise CorruptTable(f"cannot read row group {group} of {url}: {error}") from None


@functools.lru_cache(maxsize=1)
def _reader(storage: StorageSettings) -> ForwardReader:
    return ForwardReader(storage)
