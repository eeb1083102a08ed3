"""Single rows as typed values, and their form in Arrow.

Names on disk are literals here and in `schema`; fields may be renamed without moving a column. Listings and plans stay
columnar; a row becomes a value where one source or sample is worked on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.sandbox.sendable import sendable

from . import schema
from .files import names_tar, readable
from .schema import EXTRA_PREFIX


@sendable
@dataclass(frozen=True, kw_only=True)
class Source:
    """A row of a listing.

    Args:
        source: Name of the origin: an address, `TAR/MEMBER` or `TABLE#rowN`.
        url: Address of the file that holds it.
        kind: Name in `kinds.KINDS`.
        text: Caption, or the text itself.
        offset: First byte in the file, for a member of a tar.
        length: Number of bytes; None for the whole file.
        row: Row of the table at `url`.
        row_group: Row group of that table which holds the row.
        column: Column of that table which holds the file.
        text_url: Address of the file that holds the text.
        start_seconds: Start of the range, in seconds; None for a whole video.
        end_seconds: End of the range, in seconds; None for the end of the video.
        key: Name that distinguishes it from other sources of the same `source`; None where there are none.
        extra: Further columns of the input, by their names in a shard.
    """

    source: str
    url: str
    kind: str
    text: str | None = None
    offset: int | None = None
    length: int | None = None
    row: int | None = None
    row_group: int | None = None
    column: str | None = None
    text_url: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanRow(Source):
    """A row of a plan.

    Args:
        sample_id: Name of the sample.
        planned_seconds: Length of the sample, in seconds; None where the header could not be read.
        num_clips: Clips that are expected, or pictures.
        cost: Estimated core-seconds.
        size_bytes: Estimated size in a clip shard, or in memory while a token shard is made.
        attempts: Attempts that earlier plans made.
        shard: Name of the shard that will hold the sample or its reject.
    """

    sample_id: str
    planned_seconds: float | None = None
    num_clips: int = 1
    cost: float = 0.0
    size_bytes: float = 0.0
    attempts: int = 0
    shard: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A sample that could not be made.

    Args:
        stage: Pipeline that gave it up.
        error_type: Name of the error.
        attempts: Attempts that were made, those of earlier plans included.
        seconds: Time that the last plan's attempts took.
    """

    sample_id: str
    source: str
    start_seconds: float | None
    stage: str
    error_type: str
    message: str
    attempts: int
    seconds: float


@sendable
@dataclass(frozen=True, kw_only=True, eq=False)
class VideoSample:
    """A decomposed video segment: a row of a clip shard.

    Args:
        start_seconds: Start in the video, in seconds.
        end_seconds: End of the last clip, in seconds.
        fps: Frames per second of the clips.
        width, height: Frame size, in pixels.
        clips: Array of one list of `schema.CLIP`.
        work_seconds: Core-seconds that it took.
    """

    sample_id: str
    source: str
    text: str | None
    start_seconds: float
    end_seconds: float
    fps: float
    width: int
    height: int
    clips: pa.ListArray
    work_seconds: float = 0.0

    @property
    def num_clips(self) -> int:
        return len(self.clips.flatten())


# ---- names on disk ------------------------------------------------------------------------------------------------

_SOURCE_COLUMNS = {
    "source": "source",
    "url": "url",
    "kind": "kind",
    "text": "text",
    "offset": "offset",
    "length": "length",
    "row": "row",
    "row_group": "row_group",
    "column": "column",
    "text_url": "text_url",
    "start_seconds": "start_seconds",
    "end_seconds": "end_seconds",
    "key": "key",
}
_PLAN_COLUMNS = _SOURCE_COLUMNS | {
    "sample_id": "sample_id",
    "planned_seconds": "planned_seconds",
    "num_clips": "num_clips",
    "cost": "cost",
    "size_bytes": "size_bytes",
    "attempts": "attempts",
    "shard": "shard",
}
_REJECT_COLUMNS = {
    "sample_id": "sample_id",
    "source": "source",
    "start_seconds": "start_seconds",
    "stage": "stage",
    "error_type": "error_type",
    "message": "message",
    "attempts": "attempts",
    "seconds": "seconds",
}
"""Name in Arrow -> field."""


def sources_from(table: pa.Table) -> list[Source]:
    """Rows of a listing."""
    return [Source(**values, extra=extra) for values, extra in _values(table, _SOURCE_COLUMNS)]


def plan_rows_from(table: pa.Table) -> list[PlanRow]:
    """Rows of a plan. Columns that plans of version 0.1 lack are filled in."""
    return [_completed(values, extra) for values, extra in _values(table, _PLAN_COLUMNS)]


def _values(table: pa.Table, columns: Mapping[str, str]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    named = {name: columns[name] for name in table.column_names if name in columns}
    extra = {name: name.removeprefix(EXTRA_PREFIX) for name in table.column_names if name.startswith(EXTRA_PREFIX)}
    for row in table.select([*named, *extra]).to_pylist():
        yield (
            {name: row[column] for column, name in named.items()},
            {name: row[column] for column, name in extra.items()},
        )


def _completed(values: dict[str, Any], extra: dict[str, Any]) -> PlanRow:
    if values.get("kind") is None:
        values["kind"] = "tar" if names_tar(values["url"]) and values["offset"] is None else "video"
    known = {name: value for name, value in values.items() if value is not None}
    return PlanRow(**known, extra=extra)


def sources_to(rows: Iterable[Source], extra: Iterable[pa.Field] = ()) -> pa.Table:
    """A listing. Further columns have the types of `extra`."""
    return _table(rows, schema.SOURCES, _SOURCE_COLUMNS, extra)


def plan_rows_to(rows: Iterable[PlanRow], extra: Iterable[pa.Field] = ()) -> pa.Table:
    """Rows of a plan. Further columns have the types of `extra`."""
    return _table(rows, schema.PLAN, _PLAN_COLUMNS, extra)


def _table(
    rows: Iterable[Source], fields: pa.Schema, columns: Mapping[str, str], extra: Iterable[pa.Field]
) -> pa.Table:
    rows = list(rows)
    arrays = [_array([getattr(row, columns[one.name]) for row in rows], one.type) for one in fields]
    further = [one.with_name(EXTRA_PREFIX + one.name) for one in extra]
    arrays += [_array([row.extra.get(one.name) for row in rows], one.type) for one in extra]
    return pa.Table.from_arrays(arrays, schema=pa.schema([*fields, *further]))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # a name of a member that is not UTF-8, half of a surrogate pair in JSON
        return pa.array([readable(one) if isinstance(one, str) else one for one in values], kind)


def listing(columns: Mapping[str, Any], extra: Mapping[str, pa.ChunkedArray] | None = None) -> pa.Table:
    """A listing of columns of `schema.SOURCES` and further ones; columns that are not given are null.

    Args:
        columns: Arrays or lists; a single string stands for every row.
        extra: Further columns, by their names in a shard.
    """
    count = len(columns["source"])
    arrays = []
    for one in schema.SOURCES:
        values = columns.get(one.name)
        if values is None or isinstance(values, str):
            arrays.append(pa.repeat(pa.scalar(values, one.type), count))
        else:
            arrays.append(values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, one.type))
    table = pa.Table.from_arrays(arrays, names=schema.SOURCES.names).cast(schema.SOURCES)
    for name, values in (extra or {}).items():
        table = table.append_column(EXTRA_PREFIX + name, values)
    return table


def sources_of_plan(plan: pa.Table) -> pa.Table:
    """The sources that rows of a plan came from, to be planned again."""
    return sources_to(plan_rows_from(plan), extra_fields(plan.schema))


def extra_fields(of: pa.Schema) -> list[pa.Field]:
    """Further columns of a listing or plan, under their names in a shard."""
    return [
        one.with_name(one.name.removeprefix(EXTRA_PREFIX)).remove_metadata()
        for one in of
        if one.name.startswith(EXTRA_PREFIX)
    ]


def extra_column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """A further column of a listing or plan, if it is there."""
    index = table.schema.get_field_index(EXTRA_PREFIX + name)
    return table.column(index) if index >= 0 else None


def keys(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Returns the keys of the rows of a listing or plan. Plans of version 0.1 have the sources alone."""
    return pc.coalesce(table["key"], table["source"]) if "key" in table.column_names else table["source"]


def planned_names(plan: pa.Table) -> list[str]:
    """Names under which the sources of a plan count as planned: their keys, and the addresses of files of their own."""
    planned = keys(plan)
    own_files = plan["url"].filter(pc.equal(planned, plan["source"]))  # a tar's members have its address
    return [*pc.unique(planned).to_pylist(), *pc.unique(own_files).to_pylist()]


# ---- rejects and samples ------------------------------------------------------------------------------------------


def reject_to(reject: Reject) -> dict[str, Any]:
    """The reject as JSON values, as shards keep it in their footers."""
    return {column: getattr(reject, name) for column, name in _REJECT_COLUMNS.items()}


def reject_from(values: Mapping[str, Any]) -> Reject:
    """The reject that `reject_to` wrote."""
    return Reject(**{name: values[column] for column, name in _REJECT_COLUMNS.items()})


def rejects_to(rejects: Sequence[Reject]) -> pa.Table:
    """The table `rejects.parquet`."""
    return pa.Table.from_pylist([reject_to(one) for one in rejects], schema.versioned(schema.REJECTS, "rejects"))


def video_sample_to(sample: VideoSample) -> pa.Table:
    """A row of `schema.CLIPS`, with the core-seconds that it took in the metadata."""
    columns = {
        "sample_id": [sample.sample_id],
        "source": [sample.source],
        "text": [sample.text],
        "start_seconds": [sample.start_seconds],
        "end_seconds": [sample.end_seconds],
        "fps": [sample.fps],
        "width": [sample.width],
        "height": [sample.height],
        "num_clips": [sample.num_clips],
        "clips": sample.clips,
    }
    return pa.table(columns, schema.CLIPS.with_metadata({schema.WORK_SECONDS: f"{sample.work_seconds:.6f}"}))
