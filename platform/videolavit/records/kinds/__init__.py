"""Kinds of input, one file each. A new kind is a file like these and a line below; docs/extending.md shows how."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from ..prepare import Prepared, PrepareSettings
from ..rows import PlanRow, Source, VideoSample
from ..samples import SampleSettings
from ..storage import StorageSettings
from .base import Kind, PlanSettings
from .clips import ClipShard
from .image import ImageFile
from .ranges import VideoRange
from .stored_video import StoredVideo
from .tar import Tar
from .text import TextFile
from .video import VideoFile

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Tar(),
        ClipShard(),
        VideoRange(),
        StoredVideo(),
        ImageFile(),
        VideoFile(),
        TextFile(),
    )
}
"""Kinds by name. The first that takes a file or a table has it."""


def unread_row(source: Source, settings: PlanSettings) -> PlanRow:
    """Row of the plan for a source that was not read. A fault of its kind is no fault of the other sources."""
    kind = KINDS[source.kind]
    try:
        return kind.plan_unread(source, settings)
    except Exception:
        return Kind.plan_unread(kind, source, settings)


# ---- calls of child processes: each raises MediaError, the typed reason why there is no result ---------------------


def expand_source(source: Source, settings: PlanSettings, storage: StorageSettings) -> list[Source]:
    """Sources inside a container."""
    return KINDS[source.kind].expand(source, settings, storage)


def plan_source(
    source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
) -> pa.Table:
    """Rows of the plan for a source, without shards."""
    return KINDS[source.kind].plan(source, settings, storage, extra)


def read_clips(row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
    """Clips of a planned sample, decomposed or stored."""
    return KINDS[row.kind].clips(row, settings, storage)


def prepare_sample(row: PlanRow, settings: PrepareSettings, storage: StorageSettings) -> Prepared:
    """Pictures, motion and text of a planned sample, as the tokenizers read them."""
    return KINDS[row.kind].prepare(row, settings, storage)


@contextlib.contextmanager
def open_named_video(source: str, storage: StorageSettings) -> Iterator[BinaryIO]:
    """Opens the video that the column `source` of a clip shard names: an address, `TAR/MEMBER` or `TABLE#rowN`.

    Raises:
        MediaError: it is missing or unreadable.
    """
    opener = next((kind.open for kind in KINDS.values() if kind.names(source)), VideoFile().open)
    with opener(source, storage) as file:
        yield file


def shard_by(kind: str) -> Sequence[str]:
    """Columns of a plan in which rows of a kind agree that share a shard."""
    return KINDS[kind].shard_by


__all__ = [
    "KINDS",
    "Kind",
    "PlanSettings",
    "expand_source",
    "open_named_video",
    "plan_source",
    "prepare_sample",
    "read_clips",
    "shard_by",
    "unread_row",
]
