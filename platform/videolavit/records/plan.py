"""The plan of a run: which segments there are, what they cost, and which shard each belongs to. Pure functions.

A plan is written once and never changed. Shards are fixed in it, so whoever computes a shard, and however often, gives
it the same name and the same rows.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.media.errors import SourceUnreadable
from videolavit.media.settings import BLOCK, CLIP_FRAMES

from . import schema
from .identity import sample_id
from .inputs import EXTRA, TAR, TAR_JSON
from .samples import SEGMENT_VALUES, SampleSettings
from .storage import StorageSettings, open_source

SECONDS_PER_SOURCE_PIXEL = {"h264": 5e-9, "hevc": 9e-9, "av1": 9e-9, "vp9": 7e-9}
SECONDS_PER_OUTPUT_PIXEL = 8e-9
OTHER_CODEC = 5e-9
UNKNOWN_COST = 1.0
"""Core-seconds on one core of a server of 2020; only their ratios decide the order of work."""

CLIP_BYTES_PER_PIXEL = 0.6
"""Size of a clip in a shard: a JPEG of quality 95 and 24 grids."""

MAX_SHARD_BYTES = 128 << 20
SHARD_MIN_COST = 1.0
SHARDS_PER_PLAN = 256
"""A plan has about so many shards, unless they would cost less than SHARD_MIN_COST core-seconds or be larger than
MAX_SHARD_BYTES. The number does not depend on the workers, because the output must not."""


def segment_ranges(
    seconds: float | None, segment_seconds: float, clip_seconds: float
) -> list[tuple[float, float | None]]:
    """Cuts a video into ranges; the last one runs to the end, and takes in a rest that is shorter than a clip."""
    if seconds is None or seconds <= segment_seconds + clip_seconds:
        return [(0.0, None)]
    count = int(-(-(seconds - clip_seconds) // segment_seconds))
    starts = [index * segment_seconds for index in range(count)]
    return list(zip(starts, [*starts[1:], None], strict=True))


def estimated_cost(info: VideoInfo, seconds: float, fps: int) -> float:
    """Core-seconds that decomposing so many seconds of a video will take."""
    pixels = info.width * info.height
    decode = pixels * info.frame_rate * SECONDS_PER_SOURCE_PIXEL.get(info.codec, OTHER_CODEC)
    return seconds * (decode + pixels * fps * SECONDS_PER_OUTPUT_PIXEL)


def plan_source(row: dict[str, Any], settings: SampleSettings, storage: StorageSettings) -> list[dict[str, Any]]:
    """Plans one video by its header: a plan row a segment, without a shard.

    A video whose header cannot be read is planned as one segment; decomposing it gives the reject its reason.

    Raises:
        SourceUnreadable: the storage failed, which may be chance.
    """
    try:
        with open_source(row["url"], storage, row.get("offset") or 0, row.get("length")) as file:
            info = probe(file, settings)
    except SourceUnreadable:
        raise
    except MediaError:
        return [whole_source(row, settings)]
    clip_seconds = CLIP_FRAMES / settings.fps
    longest = max(SEGMENT_VALUES * BLOCK**2 / (2 * settings.fps * info.width * info.height), clip_seconds)
    longest -= longest % clip_seconds
    ranges = segment_ranges(info.seconds, min(settings.segment_seconds, longest), clip_seconds)
    return [_segment(row, settings, start, end, info.seconds, info) for start, end in ranges]


def is_whole_tar(row: dict[str, Any]) -> bool:
    """Whether a source or plan row names a tar, not a member of one."""
    return row["url"].lower().endswith(TAR) and row.get("offset") is None


def whole_source(row: dict[str, Any], settings: SampleSettings) -> dict[str, Any]:
    """The plan row of a source of unknown length: one segment."""
    return _segment(row, settings, 0.0, None, None, None)


def _segment(
    row: dict[str, Any],
    settings: SampleSettings,
    start: float,
    end: float | None,
    source_seconds: float | None,
    info: VideoInfo | None,
) -> dict[str, Any]:
    seconds = None if source_seconds is None else (end or source_seconds) - start
    return (
        {"offset": None, "length": None, "attempts": 0}
        | row
        | {
            "sample_id": sample_id(row["source"], start, settings.key()),
            "start_seconds": start,
            "end_seconds": end,
            "planned_seconds": seconds,
            "cost": estimated_cost(info, seconds, settings.fps) if info and seconds else UNKNOWN_COST,
            "pixels": info.width * info.height if info else 0,
        }
    )


def assign_shards(rows: Iterable[dict[str, Any]], generation: int) -> list[dict[str, Any]]:
    """Groups plan rows into shards, the longest work first, and names the shards."""
    ordered = sorted(rows, key=lambda row: (-row["cost"], row["sample_id"]))
    limit = max(sum(row["cost"] for row in ordered) / SHARDS_PER_PLAN, SHARD_MIN_COST)
    groups: list[list[dict[str, Any]]] = []
    cost = size = 0.0
    for row in ordered:
        row_bytes = (row["planned_seconds"] or 0) / 4 * (row.pop("pixels", 0) or 0) * CLIP_BYTES_PER_PIXEL
        if not groups or cost + row["cost"] > limit or size + row_bytes > MAX_SHARD_BYTES:
            groups.append([])
            cost = size = 0.0
        groups[-1].append(row)
        cost, size = cost + row["cost"], size + row_bytes
    return named_shards(groups, generation)


def named_shards(groups: list[list[dict[str, Any]]], generation: int) -> list[dict[str, Any]]:
    """The rows of the groups, each with its group's shard.

    Names carry the generation and a digest of their samples, so they never meet those of another plan.
    """
    for index, group in enumerate(groups):
        digest = hashlib.sha256("".join(row["sample_id"] for row in group).encode()).hexdigest()[:8]
        for row in group:
            row["shard"] = f"{generation:05d}-{index:06d}-{digest}.parquet"
    return [row for group in groups for row in group]


def plan_table(
    rows: list[dict[str, Any]], extra_fields: Iterable[pa.Field], columns: pa.Schema = schema.PLAN
) -> pa.Table:
    """Plan rows as a table of the columns and the extra columns."""
    fields = [*columns, *extra_fields]
    return pa.Table.from_pylist(rows, schema=schema.versioned(pa.schema(fields), "plan"))


def planned_extra(sources: pa.Table) -> list[pa.Field]:
    """Further columns that plan rows of these sources have: theirs, and the one that comes out of tars."""
    fields = extra_fields(sources.schema)
    has_tar = any(url.lower().endswith(TAR) for url in sources["url"].to_pylist())
    described = pa.field(TAR_JSON, pa.string())
    return [*fields, described] if has_tar and described not in fields else fields


def extra_fields(table: pa.Schema) -> list[pa.Field]:
    """The manifest's further columns in a source or plan table."""
    return [field for field in table if field.name.startswith(EXTRA)]
