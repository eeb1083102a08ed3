"""Shards of clips or tokens: written to disk, committed whole together with their rejects, read back as the ledger.

What is done is what is committed: a shard holds the rows of its samples, and in its footer the rejects of the others,
so that both appear in the same atomic step. There is no second record that could disagree.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videolavit.scratch import scratch_folder

from . import schema
from .parquet import ParquetReader
from .rows import Reject, keys, reject_from, reject_to
from .schema import WORK_SECONDS
from .storage import Folder

PLAN_FOLDER, RUN_FILE = "plan", "run.json"
_FOOTER = b"videolavit.shard"
_READERS = 16


@dataclass(frozen=True)
class ShardKind:
    """Kind of shards: of clips or of tokens.

    Attributes:
        folder: Folder of the shards in the run's folder; also the kind in their metadata.
        schema: Schema of the rows.
        count: Function that computes a footer's counts of rows, `samples` among them; counts of shards are added up.
        stored: Paths in Parquet of columns that are compressed already.
    """

    folder: str
    schema: pa.Schema
    count: Callable[[pa.Table], dict[str, float]]
    stored: frozenset[str] = frozenset()


def _count_clips(rows: pa.Table) -> dict[str, float]:
    return {
        "samples": rows.num_rows,
        "clips": pc.sum(rows["num_clips"]).as_py(),
        "frames": pc.sum(rows["clips"].combine_chunks().flatten().field("num_frames")).as_py(),
        **_times(rows),
    }


def _count_tokens(rows: pa.Table) -> dict[str, float]:
    counts: dict[str, float] = {"samples": rows.num_rows}
    for modality in ("video", "image", "text"):
        counts[f"{modality}s"] = pc.sum(pc.equal(rows["modality"], modality)).as_py() or 0
    clips = rows["clips"].combine_chunks().flatten()
    counts["clips"] = len(clips) - counts["images"]
    for kind in ("visual_tokens", "motion_tokens"):
        counts[kind] = pc.sum(pc.list_value_length(clips.field(kind))).as_py() or 0
    return counts | _times(rows)


def _times(rows: pa.Table) -> dict[str, float]:
    return {
        "video_seconds": pc.sum(pc.subtract(rows["end_seconds"], rows["start_seconds"])).as_py() or 0.0,
        "work_seconds": float((rows.schema.metadata or {}).get(WORK_SECONDS, b"0")),
    }


CLIP_SHARDS = ShardKind("clips", schema.CLIPS, _count_clips, frozenset({"clips.list.element.keyframe"}))
TOKEN_SHARDS = ShardKind("tokens", schema.TOKENS, _count_tokens)


@dataclass
class ShardSummary:
    """Counts and rejects of a shard, from its footer."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({"name": self.name, **self.counts, "rejects": [reject_to(one) for one in self.rejects]})

    @classmethod
    def from_json(cls, text: str | bytes) -> "ShardSummary":
        values = json.loads(text)
        rejects = [reject_from(one) for one in values.pop("rejects")]
        return cls(values.pop("name"), rejects=rejects, counts=Counter(values))


def total(summaries: Iterable[ShardSummary]) -> Counter[str]:
    """The counts of several shards together."""
    counts: Counter[str] = Counter()
    for summary in summaries:
        counts.update(summary.counts)
    return counts


class ShardWriter:
    """Writes a shard to a local file and publishes it under its name.

    Rows go to disk as they come: each `add` makes a row group.

    Args:
        folder: Output of the run.
        name: Name of the shard.
        extra: Fields of the manifest's further columns.
        metadata: Further Parquet metadata of the shard.

    Attributes:
        size_bytes: Size of the shard, in bytes; 0 until it is committed.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        extra: list[pa.Field],
        kind: ShardKind = CLIP_SHARDS,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._kind, self._summary = folder, kind, ShardSummary(name)
        self._schema = schema.versioned(pa.schema([*kind.schema, *extra]), kind.folder, metadata)
        self.size_bytes = 0
        self._scratch = contextlib.ExitStack()
        self._file = self._scratch.enter_context(scratch_folder()) / name
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression={path: "none" if path in kind.stored else "zstd" for path in _leaves(self._schema)},
            use_dictionary=False,
            write_statistics=False,
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()
        self._scratch.close()

    def add(self, rows: pa.Table, extra: Mapping[str, Any] | None = None) -> None:
        """Adds rows of the kind's schema. `extra` has values of further columns, the same for all of them."""
        counts = self._kind.count(rows)
        for name, value in (extra or {}).items():
            kind = self._schema.field(name)
            rows = rows.append_column(kind, pa.array([value] * rows.num_rows, kind.type))
        self._writer.write_table(rows.select(self._schema.names).cast(self._schema), row_group_size=rows.num_rows)
        self._summary.counts.update(counts)

    def reject(self, reject: Reject) -> None:
        """Adds a sample that could not be made."""
        self._summary.rejects.append(reject)

    @property
    def counts(self) -> Counter[str]:
        """Counts of the rows that were added."""
        return self._summary.counts

    def commit(self) -> bool:
        """Publishes the shard. Returns False if another worker had already published it; that one stays."""
        self._writer.add_key_value_metadata({_FOOTER.decode(): self._summary.to_json()})
        self._writer.close()
        self.size_bytes = self._file.stat().st_size
        return self._folder.create(f"{self._kind.folder}/{self._summary.name}", self._file)


def _leaves(of: pa.Schema) -> list[str]:
    """Parquet's own column paths."""
    sink = pa.BufferOutputStream()
    pq.write_table(of.empty_table(), sink)
    parquet = ParquetReader(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(index).path for index in range(len(parquet))]


class Ledger:
    """Plans and committed shards of a run, read from its folder."""

    def __init__(self, folder: Folder, kind: ShardKind = CLIP_SHARDS) -> None:
        self.folder, self.kind = folder, kind

    def plans(self) -> list[str]:
        return self.folder.names(PLAN_FOLDER, ".parquet")

    def planned(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Every plan, the oldest first."""
        for name in self.plans():
            with self.folder.open(f"{PLAN_FOLDER}/{name}") as file:
                yield ParquetReader(file).read(columns=columns)

    def add_plan(self, generation: int, plan: pa.Table) -> bool:
        """Publishes a plan. Returns False if another run has just published one of this generation."""
        sink = pa.BufferOutputStream()
        pq.write_table(plan, sink, compression="zstd")
        return self.folder.create_bytes(f"{PLAN_FOLDER}/{generation:05d}.parquet", sink.getvalue().to_pybytes())

    def committed(self) -> set[str]:
        """Names of the committed shards."""
        return set(self.folder.names(self.kind.folder, ".parquet"))

    def summaries(self) -> list[ShardSummary]:
        """The footers of all committed shards, the oldest plan first."""
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self._summary, sorted(self.committed())))

    def _summary(self, name: str) -> ShardSummary:
        with self.folder.open(f"{self.kind.folder}/{name}") as file:
            metadata = pq.read_metadata(file).metadata or {}
        return ShardSummary.from_json(metadata[_FOOTER])

    def standing(self) -> dict[str, str]:
        """Shard of each planned sample, from the latest plan that has the sample.

        A source whose header could not be read is planned as one sample until a later plan reads it; if it is a tar,
        its new members take its place.
        """
        shards: dict[str, str] = {}
        unread: dict[str, str] = {}
        for plan in self.planned():
            names = keys(plan).to_pylist()
            columns = ("source", "url", "sample_id", "shard", "offset", "planned_seconds")
            rows = list(zip(names, *(plan[name].to_pylist() for name in columns), strict=True))
            read = {key for key, *_ in rows}
            read |= {url for key, source, url, sample, *_ in rows if key == source and sample not in shards}
            for source in read & unread.keys():
                del shards[unread.pop(source)]
            for key, _, _, sample, shard, offset, seconds in rows:
                shards[sample] = shard
                if seconds is None and offset is None:
                    unread[key] = sample
        return shards

    def pending(self) -> set[str]:
        """Names of the planned shards that are not committed."""
        planned = {name for plan in self.planned(["shard"]) for name in plan["shard"].unique().to_pylist()}
        return planned - self.committed()

    def rejects(self, summaries: list[ShardSummary], standing: dict[str, str]) -> list[Reject]:
        """Rejects that stand: those of samples that no later plan took up again."""
        return [
            reject
            for summary in summaries
            for reject in summary.rejects
            if standing.get(reject.sample_id) == summary.name
        ]
