"""The plan of a tokenizing run: its samples, and which token shard each belongs to."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videolavit.media import CLIP_FRAMES

from . import inputs, schema
from .corpus import CorpusSettings, extra_of
from .identity import sample_id
from .inputs import suffix_of
from .plan import SHARD_MIN_COST, SHARDS_PER_PLAN, named_shards
from .samples import SampleSettings
from .storage import StorageSettings, open_source

SHARD_UNITS = 256
"""Pictures in a token shard, about: 300 kB each while the shard is made, a quarter of a kilobyte in it."""

TEXT_UNIT = 64 << 10
TEXTS_A_UNIT = 16
"""A text counts as a unit for each so many characters, and at least a 16th of one."""

SECONDS_PER_CLIP, SECONDS_PER_IMAGE, SECONDS_PER_TEXT = 0.015, 0.01, 0.0005
"""Core-seconds until a stored clip, an image file or a text is ready for the tokenizers, roughly."""


def expand_source(row: dict[str, Any], storage: StorageSettings, corpus: CorpusSettings) -> pa.Table:
    """The sources in a tar or a clip shard, as rows of `corpus.SOURCES` with what a plan knows of clips.

    Raises:
        MediaError: it cannot be read.
    """
    return _clip_rows(row, storage) if row["kind"] == "clips" else _members(row, storage, corpus)


def _members(row: dict[str, Any], storage: StorageSettings, corpus: CorpusSettings) -> pa.Table:
    members = [
        row | member | {"kind": "video" if suffix_of(member["source"]) in inputs.VIDEO_MEMBERS else "image"}
        for member in inputs.tar_members(row["url"], storage, corpus.members())
    ]
    return pa.Table.from_pylist(members)


def _clip_rows(row: dict[str, Any], storage: StorageSettings) -> pa.Table:
    with open_source(row["url"], storage) as file:
        shard = pq.ParquetFile(file)
        extra = extra_of(shard.schema_arrow, frozenset(schema.CLIPS.names))
        own = ["sample_id", "source", "text", "start_seconds", "end_seconds", "num_clips"]
        table = shard.read(columns=[*own, *extra])
    count = table.num_rows
    further = {
        "url": pa.array([row["url"]] * count, pa.string()),
        "kind": pa.array(["clips"] * count, pa.string()),
        "row": pa.array(range(count), pa.int64()),
        "planned_seconds": pc.subtract(table["end_seconds"], table["start_seconds"]),
        "cost": pc.multiply(pc.cast(table["num_clips"], pa.float64()), SECONDS_PER_CLIP),
        "attempts": pa.array([0] * count, pa.int32()),
        "shard": pa.nulls(count, pa.string()),
    }
    table = table.rename_columns([extra.get(name, name) for name in table.column_names])
    for name, values in further.items():
        table = table.append_column(name, values)
    return table.cast(pa.schema([_planned_field(field) for field in table.schema]))


def _planned_field(field: pa.Field) -> pa.Field:
    return schema.TOKEN_PLAN.field(field.name) if field.name in schema.TOKEN_PLAN.names else field.with_metadata(None)


def plan_unit(row: dict[str, Any]) -> dict[str, Any]:
    """The plan row of an image or a text, or of a tar or clip shard whose content could not be listed."""
    known = row["kind"] in ("image", "text")
    cost = SECONDS_PER_TEXT if row["kind"] == "text" else SECONDS_PER_IMAGE if known else 1.0
    return (
        {"offset": None, "length": None, "attempts": 0}
        | row
        | {
            "sample_id": sample_id(row["source"], 0.0, {"modality": row["kind"]}),
            "start_seconds": None,
            "end_seconds": None,
            "planned_seconds": 0.0 if known else None,
            "cost": cost,
            "num_clips": int(row["kind"] == "image"),
        }
    )


def plan_video(segments: list[dict[str, Any]], settings: SampleSettings) -> list[dict[str, Any]]:
    """Segments as `videolavit.records.plan` plans them, with the clips to be expected of each."""
    for segment in segments:
        seconds = segment["planned_seconds"] or settings.segment_seconds
        segment["num_clips"] = max(int(-(-seconds * settings.fps // CLIP_FRAMES)), 1)
        del segment["pixels"]
    return segments


def assign_token_shards(rows: Iterable[dict[str, Any]], generation: int) -> list[dict[str, Any]]:
    """Groups plan rows into shards and names them; what lies together in a file stays together.

    Neither the order of the input nor any number of workers plays a part.
    """
    ordered = sorted(rows, key=_place)
    limit = max(sum(row["cost"] for row in ordered) / SHARDS_PER_PLAN, SHARD_MIN_COST)
    groups: list[list[dict[str, Any]]] = []
    cost = units = 0.0
    for row in ordered:
        if not groups or cost + row["cost"] > limit or units + _units(row) > SHARD_UNITS:
            groups.append([])
            cost = units = 0.0
        groups[-1].append(row)
        cost, units = cost + row["cost"], units + _units(row)
    return named_shards(groups, generation)


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["kind"], row["url"], row["row"] or 0, row["offset"] or 0, row["start_seconds"] or 0.0


def _units(row: dict[str, Any]) -> float:
    if row["kind"] == "text":
        return max(len(row["text"] or "") / TEXT_UNIT, 1 / TEXTS_A_UNIT)
    return float(max(row["num_clips"], 1))
