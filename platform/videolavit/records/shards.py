"""Shards of clips or tokens: written to disk, committed whole together with their rejects, read back as the ledger.

What is done is what is committed: a shard holds the rows of its samples, and in its footer the rejects of the others,
so that both appear in the same atomic step. There is no second record that could disagree.
"""

import contextlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videolavit.scratch import scratch_folder

from . import schema
from .parquet import ParquetReader
from .rows import Reject, reject_from, reject_to
from .schema import WORK_SECONDS
from .standing import STANDING_COLUMNS, Standing, standing
from .storage import Folder

PLAN_FOLDER, SUMMARY_FOLDER, RUN_FILE = "plan", "summaries", "run.json"
_FOOTER, _IS_NEW = b"videolavit.shard", b"videolavit.is_new"
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

    @property
    def generation(self) -> str:
        """Number of the plan of the shard, as its name has it."""
        return _generation(self.name)

    def standing_rejects(self, standing: Standing) -> list[Reject]:
        """Rejects of samples that no later plan took up again."""
        return [one for one in self.rejects if standing.holds(one.sample_id, self.name)]

    def to_json(self) -> str:
        return json.dumps({"name": self.name, **self.counts, "rejects": [reject_to(one) for one in self.rejects]})

    @classmethod
    def from_json(cls, text: str | bytes) -> "ShardSummary":
        values = json.loads(text)
        rejects = [reject_from(one) for one in values.pop("rejects")]
        return cls(values.pop("name"), rejects=rejects, counts=Counter(values))


def footer_metadata(summary: ShardSummary) -> dict[str, str]:
    """Parquet metadata that a shard keeps its summary in."""
    return {_FOOTER.decode(): summary.to_json()}


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
        self._writer.add_key_value_metadata(footer_metadata(self._summary))
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

    # ---- plans ------------------------------------------------------------------------------------------------------

    def plans(self) -> list[str]:
        return self.folder.names(PLAN_FOLDER, ".parquet")

    def plans_by_generation(self) -> dict[str, str]:
        """Names of the plans by their numbers, as names of shards have them."""
        return {_generation(name): name for name in self.plans()}

    @contextlib.contextmanager
    def open_plan(self, name: str) -> Iterator[ParquetReader]:
        """Opens a plan."""
        with self.folder.open(f"{PLAN_FOLDER}/{name}") as file:
            yield ParquetReader(file)

    def plan(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A plan; of columns that are named, those that it has."""
        with self.open_plan(name) as plan:
            return plan.read(columns=columns)

    def planned(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Every plan, the oldest first."""
        for name in self.plans():
            yield self.plan(name, columns)

    def shard_sizes(self, name: str) -> dict[str, int]:
        """Number of planned samples of each shard of a plan."""
        return {one["values"]: one["counts"] for one in self.plan(name, ["shard"])["shard"].value_counts().to_pylist()}

    def add_plan(self, generation: int, plan: pa.Table, is_new: bool = False) -> bool:
        """Publishes a plan. Returns False if another run has just published one of this generation.

        Args:
            is_new: True if no earlier plan has a source or a sample of this one.
        """
        if is_new:
            plan = plan.replace_schema_metadata({**(plan.schema.metadata or {}), _IS_NEW: b"1"})
        sink = pa.BufferOutputStream()
        pq.write_table(plan, sink, compression="zstd")
        return self.folder.create_bytes(f"{PLAN_FOLDER}/{generation:05d}.parquet", sink.getvalue().to_pybytes())

    def standing(self) -> Standing:
        """The samples of all plans, each once. Reads rows only where plans may have samples of earlier ones."""
        names = self.plans()
        with ThreadPoolExecutor(_READERS) as readers:
            facts = list(readers.map(self._plan_facts, names))
        again = [number for number, (_, is_new) in enumerate(facts) if number and not is_new]
        return standing([size for size, _ in facts], again, lambda number: self.plan(names[number], STANDING_COLUMNS))

    def _plan_facts(self, name: str) -> tuple[int, bool]:
        """Number of rows of a plan, and True if nothing of it is in earlier plans."""
        with self.open_plan(name) as plan:
            return plan.metadata.num_rows, _IS_NEW in (plan.metadata.metadata or {})

    def pending(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Plans of which shards are not committed, the oldest first, with the sizes of those shards in samples."""
        committed, summarized = self._committed_by_plan(), self._summarized()
        for name in self.plans():
            generation = _generation(name)
            done = committed.get(generation, [])
            if summarized.get(generation) != len(done):  # a summary is written when all shards of a plan are there
                there = set(done)
                missing = {shard: size for shard, size in self.shard_sizes(name).items() if shard not in there}
                if missing:
                    yield name, missing

    # ---- shards -----------------------------------------------------------------------------------------------------

    def committed(self) -> set[str]:
        """Names of the committed shards."""
        return set(self.folder.names(self.kind.folder, ".parquet"))

    def summaries(self) -> Iterator[ShardSummary]:
        """The footers of all committed shards, the oldest plan first; those of finished plans from a file each."""
        summarized = self._summarized()
        with ThreadPoolExecutor(_READERS) as readers:
            files: Iterator[Callable[[], list[ShardSummary]]] = (
                read
                for generation, names in self._committed_by_plan().items()
                for read in (
                    [partial(self._plan_summaries, generation, len(names))]
                    if summarized.get(generation) == len(names)
                    else [partial(self._footers, [name]) for name in names]
                )
            )
            for found in _read_ahead(readers, files):
                yield from found

    def compact(self) -> None:
        """Writes the footers of each plan whose shards are all committed to one file, so that the next start opens few.

        The file says nothing that the shards do not: without it, they are read.
        """
        planned, summarized = self.plans_by_generation(), self._summarized()
        with ThreadPoolExecutor(_READERS) as readers:
            for generation, names in self._committed_by_plan().items():
                is_missing = generation in planned and summarized.get(generation) != len(names)
                if is_missing and sorted(self.shard_sizes(planned[generation])) == names:
                    found = [one for (one,) in readers.map(self._footers, ([name] for name in names))]
                    self._write_summaries(generation, found)

    def forget_incomplete(self) -> None:
        """Deletes the summaries of plans that miss shards again: what is made anew may differ."""
        committed = self._committed_by_plan()
        for generation, count in self._summarized().items():
            if len(committed.get(generation, [])) != count:
                self.folder.remove(_summary_file(generation, count))

    def _committed_by_plan(self) -> dict[str, list[str]]:
        """Names of the committed shards by the number of their plan, both sorted."""
        names = self.folder.names(self.kind.folder, ".parquet")
        return {generation: list(some) for generation, some in groupby(names, _generation)}

    def _summarized(self) -> dict[str, int]:
        """Number of shards of each plan that has a file of summaries, by the number of the plan."""
        names = (name.removesuffix(".parquet") for name in self.folder.names(SUMMARY_FOLDER, ".parquet"))
        return {generation: int(count) for generation, _, count in (name.partition("-") for name in names)}

    def _write_summaries(self, generation: str, summaries: list[ShardSummary]) -> None:
        fields = schema.versioned(pa.schema([("shard", pa.string()), ("summary", pa.string())]), SUMMARY_FOLDER)
        columns = [[one.name for one in summaries], [one.to_json() for one in summaries]]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns, schema=fields), sink, compression="zstd")
        self.folder.create_bytes(_summary_file(generation, len(summaries)), sink.getvalue().to_pybytes())

    def _plan_summaries(self, generation: str, count: int) -> list[ShardSummary]:
        with self.folder.open(_summary_file(generation, count)) as file:
            texts = ParquetReader(file).read(["summary"])["summary"].to_pylist()
        return [ShardSummary.from_json(text) for text in texts]

    def _footers(self, names: Sequence[str]) -> list[ShardSummary]:
        found = []
        for name in names:
            with self.folder.open(f"{self.kind.folder}/{name}") as file:
                metadata = pq.read_metadata(file).metadata or {}
            found.append(ShardSummary.from_json(metadata[_FOOTER]))
        return found


def _generation(name: str) -> str:
    """Number of the plan of a shard or plan file."""
    return re.split("[-.]", name, maxsplit=1)[0]


def _summary_file(generation: str, count: int) -> str:
    return f"{SUMMARY_FOLDER}/{generation}-{count}.parquet"


def _read_ahead(
    readers: ThreadPoolExecutor, files: Iterable[Callable[[], list[ShardSummary]]]
) -> Iterator[list[ShardSummary]]:
    """Results of reading files, in their order. Some are read ahead, not all: their results would lie in memory."""
    reading: deque[Future[list[ShardSummary]]] = deque()
    for read in files:
        reading.append(readers.submit(read))
        if len(reading) > 2 * _READERS:
            yield reading.popleft().result()
    while reading:
        yield reading.popleft().result()
