"""Texts: files, and rows of tables."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.media import MediaError

from ..files import TEXT_SUFFIXES, suffix_of
from ..inputs import InputSettings
from ..prepare import Prepared, PrepareSettings, prepared, read_bytes
from ..rows import PlanRow, Source
from ..storage import StorageSettings
from ..tables import Table
from .base import PICTURE_BYTES, Kind, PlanSettings
from .manifest import list_stored

MAX_TEXT_BYTES = 16 << 20
CHARACTERS_PER_PICTURE = 64 << 10
TEXTS_PER_PICTURE = 16
"""A text of CHARACTERS_PER_PICTURE characters counts as one picture; a shorter one counts as at least a 16th."""

TEXT_COST = 0.0005
"""Core-seconds until a text is ready for a shard, about."""


class NotAText(MediaError):
    """The bytes are not UTF-8."""


class EmptyText(MediaError):
    """Nothing, or nothing but spaces."""


class TextTooLarge(MediaError):
    """The text is above the limit, and has to be cut into documents first."""


class TextFile(Kind):
    """A text in a file or in a table."""

    name = "text"
    modality = "text"
    reads_header = False

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        return settings.must_be("text") or (settings.may_be("text") and suffix_of(name) in TEXT_SUFFIXES)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        named = {settings.text_column or "text", "caption"} & set(table.names)
        return settings.may_be("text") and bool(named)

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        return list_stored(self.name, None, table, rows, first, settings, reserved)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        return replace(super().plan_unread(source, settings), planned_seconds=0.0, cost=TEXT_COST)

    def token_bytes(self, plan: pa.Table) -> pa.Array:
        characters = pc.cast(pc.coalesce(pc.utf8_length(plan["text"]), 0), pa.float64())
        pictures = pc.max_element_wise(pc.divide(characters, float(CHARACTERS_PER_PICTURE)), 1 / TEXTS_PER_PICTURE)
        return pc.multiply(pictures, float(PICTURE_BYTES))

    def prepare(self, row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
        if row.row is not None:
            text = row.text or ""
        else:
            text = _decoded(read_bytes(row.url, storage, MAX_TEXT_BYTES, TextTooLarge, row.offset, row.length))
        if not text.strip():
            raise EmptyText("nothing but spaces" if text else "no text")
        return prepared(text, [], [], settings)


def read_caption(url: str, storage: StorageSettings) -> str | None:
    """Content of a caption file; None if there is nothing but spaces. Raises MediaError."""
    return _decoded(read_bytes(url, storage, MAX_TEXT_BYTES, TextTooLarge)).strip() or None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotAText(f"not UTF-8: {error}") from None
