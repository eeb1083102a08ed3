"""Clip shards: written row by row, committed whole together with their rejects, and read back as the run's ledger.

What is done is what is committed: a shard holds the rows of its samples, and in its footer the rejects of the others,
so that both appear in the same atomic step. There is no second record that could disagree.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import schema
from .storage import Folder

CLIPS, PLAN = "clips", "plan"
_FOOTER = b"videolavit.shard"
_READERS = 16
_KEYFRAME = "clips.list.element.keyframe"
"""Path of the pictures in Parquet; they are compressed already."""


@dataclass
class ShardSummary:
    """What a shard's footer says about it."""

    name: str = ""
    samples: int = 0
    clips: int = 0
    frames: int = 0
    video_seconds: float = 0.0
    work_seconds: float = 0.0
    rejects: list[dict[str, Any]] = field(default_factory=list)


class ShardWriter:
    """Writes a shard to a local file and publishes it under its name.

    Rows go to disk as they come, so memory holds one sample at a time.

    Args:
        folder: Output of the run.
        name: Of the shard.
        extra: Fields of the manifest's further columns.
    """

    def __init__(self, folder: Folder, name: str, extra: list[pa.Field]) -> None:
        self._folder, self._summary = folder, ShardSummary(name=name)
        self._schema = schema.versioned(pa.schema([*schema.CLIPS, *extra]), "clips")
        self._scratch = tempfile.TemporaryDirectory(prefix="videolavit-")
        self._file = Path(self._scratch.name) / name
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression={path: "none" if path == _KEYFRAME else "zstd" for path in _leaves(self._schema)},
            use_dictionary=False,
            write_statistics=False,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()
        self._scratch.cleanup()

    def add(self, row: pa.Table, extra: dict[str, Any]) -> None:
        """Adds a one-row table of `schema.CLIPS`, with the values of the further columns."""
        work = float((row.schema.metadata or {}).get(b"work_seconds", b"0"))
        for name, value in extra.items():
            row = row.append_column(self._schema.field(name), pa.array([value], self._schema.field(name).type))
        self._writer.write_table(row.cast(self._schema), row_group_size=1)
        summary = self._summary
        summary.samples += 1
        summary.clips += row["num_clips"][0].as_py()
        summary.frames += pa.compute.sum(row["clips"].combine_chunks().flatten().field("num_frames")).as_py()
        summary.video_seconds += row["end_seconds"][0].as_py() - row["start_seconds"][0].as_py()
        summary.work_seconds += work

    def reject(self, row: dict[str, Any]) -> None:
        """Adds a row of `schema.REJECTS`."""
        self._summary.rejects.append(row)

    def commit(self) -> bool:
        """Publishes the shard. Returns False if another worker had already published it; that one stays."""
        self._writer.add_key_value_metadata({_FOOTER.decode(): json.dumps(asdict(self._summary))})
        self._writer.close()
        return self._folder.create(f"{CLIPS}/{self._summary.name}", self._file)


def _leaves(of: pa.Schema) -> list[str]:
    """Parquet's own column paths."""
    sink = pa.BufferOutputStream()
    pq.write_table(of.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]


class Ledger:
    """What a run's folder says has been planned and committed."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def plans(self) -> list[str]:
        return self.folder.names(PLAN, ".parquet")

    def planned(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every plan, the oldest first."""
        for name in self.plans():
            with self.folder.open(f"{PLAN}/{name}") as file:
                yield pq.read_table(file, columns=columns)

    def add_plan(self, generation: int, plan: pa.Table) -> bool:
        """Publishes a plan. Returns False if another run has just published one of this generation."""
        sink = pa.BufferOutputStream()
        pq.write_table(plan, sink, compression="zstd")
        return self.folder.create_bytes(f"{PLAN}/{generation:05d}.parquet", sink.getvalue().to_pybytes())

    def committed(self) -> set[str]:
        """Names of the committed shards."""
        return set(self.folder.names(CLIPS, ".parquet"))

    def summaries(self) -> list[ShardSummary]:
        """The footers of all committed shards, the oldest plan first."""
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self._summary, sorted(self.committed())))

    def _summary(self, name: str) -> ShardSummary:
        with self.folder.open(f"{CLIPS}/{name}") as file:
            metadata = pq.read_metadata(file).metadata or {}
        return ShardSummary(**json.loads(metadata[_FOOTER]))

    def standing(self) -> dict[str, str]:
        """The shard that answers for each planned sample: the latest plan's that has it.

        A file whose header could not be read stands for itself until a later plan reads it; if it is a tar, its members
        take its place.
        """
        shards: dict[str, str] = {}
        unread: dict[str, str] = {}
        for plan in self.planned(["sample_id", "url", "offset", "planned_seconds", "shard"]):
            rows = plan.to_pylist()
            for url in {row["url"] for row in rows} & unread.keys():
                del shards[unread.pop(url)]
            for row in rows:
                shards[row["sample_id"]] = row["shard"]
                if row["planned_seconds"] is None and row["offset"] is None:
                    unread[row["url"]] = row["sample_id"]
        return shards

    def pending(self) -> set[str]:
        """Names of the planned shards that are not committed."""
        planned = {name for plan in self.planned(["shard"]) for name in plan["shard"].unique().to_pylist()}
        return planned - self.committed()

    def rejects(self, summaries: list[ShardSummary], standing: dict[str, str]) -> list[dict[str, Any]]:
        """Rejects that stand: those of samples that no later plan took up again."""
        return [
            reject
            for summary in summaries
            for reject in summary.rejects
            if standing.get(reject["sample_id"]) == summary.name
        ]
