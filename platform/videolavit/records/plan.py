"""The plan of a run: the segments of a video, what they cost, and which shard each sample belongs to. Pure functions.

A plan is written once and never changed. Shards are fixed in it, so whoever computes a shard, and however often, gives
it the same name and the same rows.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from videolavit.media import VideoInfo
from videolavit.media.settings import BLOCK, CLIP_FRAMES

from . import schema
from .rows import PlanRow, plan_rows_from
from .samples import SEGMENT_VALUES, SampleSettings

CLIP_BYTES_PER_PIXEL = 0.6
"""Size of a clip in a shard: a JPEG of quality 95 and 24 grids."""

MAX_CLIP_SHARD_BYTES = 128 << 20
MAX_TOKEN_SHARD_BYTES = 64 << 20
"""256 pictures of `kinds.base.PICTURE_BYTES`, while the shard is made; in it they take a quarter of a kilobyte each."""

SHARD_MIN_COST = 1.0
SHARDS_PER_PLAN = 256
"""Approximate number of shards of a plan, unless they would cost less than SHARD_MIN_COST core-seconds or exceed
MAX_CLIP_SHARD_BYTES or MAX_TOKEN_SHARD_BYTES. It does not depend on the workers, because the output must not."""


ShardBy = Callable[[str], Sequence[str]]
"""Columns of a plan by kind: rows that agree in them share a shard, unless they are too large for one."""


def segment_ranges(info: VideoInfo, settings: SampleSettings) -> list[tuple[float, float | None]]:
    """Cuts a video into ranges; the last one runs to the end, and takes in a rest that is shorter than a clip."""
    length, clip = segment_seconds(info, settings), clip_seconds(settings)
    if info.seconds is None or info.seconds <= length + clip:
        return [(0.0, None)]
    count = int(-(-(info.seconds - clip) // length))
    starts = [index * length for index in range(count)]
    return list(zip(starts, [*starts[1:], None], strict=True))


def segment_seconds(info: VideoInfo, settings: SampleSettings) -> float:
    """Longest segment of a video, in seconds: large pictures are cut shorter, to a whole number of clips."""
    clip = clip_seconds(settings)
    longest = max(SEGMENT_VALUES * BLOCK**2 / (2 * settings.fps * info.width * info.height), clip)
    return min(settings.segment_seconds, longest - longest % clip)


def clip_seconds(settings: SampleSettings) -> float:
    """Length of a full clip, in seconds."""
    return CLIP_FRAMES / settings.fps


def expected_clips(seconds: float | None, settings: SampleSettings) -> int:
    """Clips of a segment, about; of one of unknown length, those of a whole one."""
    return max(int(-(-(seconds or settings.segment_seconds) * settings.fps // CLIP_FRAMES)), 1)


def clip_bytes(info: VideoInfo, seconds: float) -> float:
    """Estimated size in a shard of the clips of a part of a video of the given length, in bytes."""
    return seconds / 4 * (info.width * info.height) * CLIP_BYTES_PER_PIXEL


def assign_clip_shards(plan: pa.Table, generation: int, shard_by: ShardBy) -> pa.Table:
    """Groups the rows of a plan into shards, the most work first, and names the shards."""

    def order(group: tuple[float, str], row: PlanRow) -> tuple[Any, ...]:
        return -group[0], group[1], row.row or 0, row.start_seconds or 0.0

    return _assign(plan, generation, shard_by, order, MAX_CLIP_SHARD_BYTES)


def assign_token_shards(plan: pa.Table, generation: int, shard_by: ShardBy) -> pa.Table:
    """Groups the rows of a plan into shards and names them; rows that are close in a file stay in one shard.

    The result depends neither on the order of the input nor on the number of workers.
    """

    def order(group: tuple[float, str], row: PlanRow) -> tuple[Any, ...]:
        return row.kind, row.url, row.row or 0, row.offset or 0, row.start_seconds or 0.0

    return _assign(plan, generation, shard_by, order, MAX_TOKEN_SHARD_BYTES)


def _assign(
    plan: pa.Table,
    generation: int,
    shard_by: ShardBy,
    order: Callable[[tuple[float, str], PlanRow], tuple[Any, ...]],
    max_bytes: float,
) -> pa.Table:
    rows = plan_rows_from(plan.select([name for name in schema.PLAN.names if name != "text"]))  # texts are large
    groups = [_group(row, shard_by(row.kind)) for row in rows]
    costs: dict[str, float] = {}
    for group, row in zip(groups, rows, strict=True):
        costs[group] = costs.get(group, 0.0) + row.cost
    ordered = sorted(range(len(rows)), key=lambda index: order((costs[groups[index]], groups[index]), rows[index]))
    limit = max(sum(rows[index].cost for index in ordered) / SHARDS_PER_PLAN, SHARD_MIN_COST)
    shards: list[list[int]] = []
    cost = size = 0.0
    before = None
    for index in ordered:
        row, is_new = rows[index], groups[index] != before
        before = groups[index]
        is_full = is_new and cost + costs[before] > limit
        if not shards or is_full or size + row.size_bytes > max_bytes:
            shards.append([])
            cost = size = 0.0
        shards[-1].append(index)
        cost, size = cost + row.cost, size + row.size_bytes
    names = []
    for number, shard in enumerate(shards):
        name = _shard_name(generation, number, [rows[index] for index in shard])
        names += [name] * len(shard)
    assigned = plan.take([index for shard in shards for index in shard])
    column = pa.array(names, pa.string())
    return assigned.set_column(plan.schema.get_field_index("shard"), schema.PLAN.field("shard"), column)


def _group(row: PlanRow, shard_by: Sequence[str]) -> str:
    return "\0".join(str(getattr(row, column)) for column in shard_by) or row.sample_id


def _shard_name(generation: int, number: int, rows: list[PlanRow]) -> str:
    """Name with the generation and a digest of the samples, so that names of two plans never meet."""
    digest = hashlib.sha256("".join(row.sample_id for row in rows).encode()).hexdigest()[:8]
    return f"{generation:05d}-{number:06d}-{digest}.parquet"
