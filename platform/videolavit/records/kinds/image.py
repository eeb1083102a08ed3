"""Image files, members of tars, and tables of images: their addresses, or the images themselves."""

import functools
import os
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from ..files import IMAGE_SUFFIXES, suffix_of
from ..inputs import InputSettings
from ..pictures import MAX_FILE_BYTES, ImageTooLarge, decode_image
from ..prepare import Prepared, PrepareSettings, prepared, read_bytes
from ..rows import PlanRow, Source, listing
from ..storage import StorageSettings
from ..table_reader import TableReader
from ..tables import Table
from .base import Kind, PlanSettings
from .manifest import list_addresses, list_stored, stored_bytes
from .text import read_caption

IMAGE_COST = 0.01
"""Core-seconds until an image file is ready for the tokenizers, about."""


class ImageFile(Kind):
    """An image in a file, in a range of bytes of one, or in a table."""

    name = "image"
    modality = "image"
    joins_captions = True
    reads_header = False

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        return settings.must_be("image") or (settings.may_be("image") and suffix_of(name) in IMAGE_SUFFIXES)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return settings.must_be("image") or (settings.may_be("image") and settings.image_column in table.names)

    def list_files(self, addresses: Sequence[str], neighbours: frozenset[str]) -> pa.Table:
        """Sources of files; the caption of an image is in the `.txt` file of its name."""
        captions = [f"{os.path.splitext(address)[0]}.txt" for address in addresses]
        text_urls = [caption if caption in neighbours else None for caption in captions]
        return listing({"source": list(addresses), "url": list(addresses), "kind": self.name, "text_url": text_urls})

    def media_column(self, settings: InputSettings) -> str:
        return settings.image_column

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        column = settings.image_column
        if table.holds_bytes(column):
            return list_stored(self.name, column, table, rows, first, settings, reserved)
        return list_addresses(self.name, column, table, rows, first, settings, reserved)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        return replace(super().plan_unread(source, settings), planned_seconds=0.0, num_clips=1, cost=IMAGE_COST)

    def prepare(self, row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
        text = read_caption(row.text_url, storage) if row.text_url else row.text
        picture = decode_image(image_bytes(row, storage, _tables(storage)), settings.picture_size)
        return prepared(text, [picture], [], settings)


def image_bytes(source: Source, storage: StorageSettings, tables: TableReader) -> bytes:
    """Content of an image file.

    Raises:
        MediaError: it cannot be read.
    """
    if source.row is None:
        return read_bytes(source.url, storage, MAX_FILE_BYTES, ImageTooLarge, source.offset, source.length)
    assert source.column is not None
    value = tables.row(source.url, source.row, [source.column])[source.column][0].as_py()
    return stored_bytes(value, source, "image", storage, MAX_FILE_BYTES, ImageTooLarge)


@functools.lru_cache(maxsize=1)
def _tables(storage: StorageSettings) -> TableReader:
    """Reader of this process. A plan keeps neighbours together, so that the last row group is enough."""
    return TableReader(storage)
