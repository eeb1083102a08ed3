"""Clip shards, videos, images and texts to token shards.

    sources -> plan (1:N) -> shards fixed in OUT/plan
            -> prepare (1 shard : 1 block) -> encode (1 block : 1 file) -> OUT/tokens

CPU actors read, decode and resize; tokenizer actors, on a GPU when there is one, encode and commit. A shard passes from
the one to the other as a whole, so that its samples, the batches that they are encoded in, and its name come from the
plan alone. The guarantees are those of `pipelines.decompose`, by the same means.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from videolavit.isolation import IsolatedFunction
from videolavit.records import schema
from videolavit.records.corpus import CorpusSettings
from videolavit.records.plan import extra_fields, plan_source, plan_table, whole_source
from videolavit.records.prepare import PrepareSettings, prepare_row
from videolavit.records.prepared import PreparedShard, ShardBuilder, failed_block, waiting_block
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import TOKENS, Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_plan import assign_token_shards, expand_source, plan_unit, plan_video
from videolavit.records.tokenizers import EncodeSettings, Tokenizers

from .common import (
    HEADER_TIME_LIMIT,
    TELL_EVERY,
    Failed,
    Rejected,
    WorkerSettings,
    cluster_has,
    from_blocks,
    planned_by,
    progress_record,
    records_of,
    tried,
    tried_sample,
)

if TYPE_CHECKING:
    from videolavit.records.encode import Encoder

PREPARER_MEMORY = 700 << 20
"""Of an actor that holds a shard and its copy on the way, 75 MB each, and its decoding child."""

COUNTED = ("samples", "videos", "images", "texts", "clips", "tokens", "rejects")
"""What progress records count."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How tokenizer actors are run.

    Args:
        tokenizers: Actors; by default as many as the GPUs hold, or as there are cores without GPUs.
        gpu_fraction: Share of a GPU that each takes; by default a whole one if the cluster has any. 0: the CPU.
    """

    tokenizers: int | None = None
    gpu_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.tokenizers is not None and self.tokenizers < 1:
            raise ValueError(f"tokenizers must be at least 1, not {self.tokenizers}")
        if self.gpu_fraction is not None and not 0 <= self.gpu_fraction <= 1:
            raise ValueError(f"gpu_fraction must be from 0 to 1, not {self.gpu_fraction:g}")


@dataclass(frozen=True, kw_only=True)
class TokenizeTask:
    """All that decides how a shard is made."""

    prepare: PrepareSettings
    encode: EncodeSettings
    tokenizers: Tokenizers
    gpu_fraction: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpu_fraction else "cpu"


def device_share(settings: TokenizerSettings) -> float:
    """The share of a GPU that a tokenizer takes on this cluster."""
    if settings.gpu_fraction is not None:
        return settings.gpu_fraction
    return 1.0 if cluster_has("GPU") else 0.0


def plan_samples(
    sources: pa.Table,
    settings: SampleSettings,
    corpus: CorpusSettings,
    storage: StorageSettings,
    workers: WorkerSettings,
) -> Iterator[pa.Table]:
    """Yields tables of plan rows that have no shard yet.

    Images and texts are planned as they are. Headers of videos, tars and clip shards are read, by actors; what has no
    sample in it comes as a row without `sample_id`.
    """
    simple = pc.is_in(sources["kind"], pa.array(["image", "text"]))
    units = sources.filter(simple)
    if units.num_rows:
        planned = pa.schema([*schema.TOKEN_PLAN, *extra_fields(sources.schema)])
        yield pa.Table.from_pylist([plan_unit(row) for row in units.to_pylist()], schema=planned)
    others = sources.filter(pc.invert(simple))
    if others.num_rows:
        yield from planned_by(_Planner, {"settings": settings, "corpus": corpus, "storage": storage}, others, workers)


def commit_token_plan(ledger: Ledger, planned: pa.Table, generation: int) -> bool:
    """As `pipelines.decompose.commit_plan`."""
    rows = assign_token_shards(planned.drop_columns(["shard"]).to_pylist(), generation)
    return ledger.add_plan(generation, plan_table(rows, extra_fields(planned.schema), schema.TOKEN_PLAN))


def tokenize_shards(
    shards: list[pa.Table],
    folder: Folder,
    task: TokenizeTask,
    workers: WorkerSettings,
    tokenizers: TokenizerSettings,
) -> Iterator[dict[str, Any]]:
    """Makes and commits shards; yields progress records, that of a failed shard with its `error`."""
    preparing, encoding = _pools(workers, tokenizers, task, len(shards))
    dataset = (
        from_blocks(shards)
        .map_batches(
            _Preparer,
            fn_constructor_kwargs={"settings": task.prepare, "storage": folder.settings, "workers": workers},
            batch_size=None,
            batch_format="pyarrow",
            **preparing,
        )
        .map_batches(
            _Tokenizer,
            fn_constructor_kwargs={"output": folder.url, "storage": folder.settings, "task": task},
            batch_size=None,
            batch_format="pyarrow",
            **encoding,
        )
    )
    yield from records_of(dataset)


def _pools(
    workers: WorkerSettings, tokenizers: TokenizerSettings, task: TokenizeTask, shards: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the two pools. What starts at once fits the cluster; more of either makes a cluster grow.

    Without GPUs an actor of either pool takes half a core: videos keep the preparers busy, clip shards the tokenizers,
    and the pool that has less to do leaves its cores to the other.
    """
    cores, gpus = max(int(cluster_has("CPU")), 1), cluster_has("GPU")
    fits = int(gpus) * int(1 / task.gpu_fraction) if task.gpu_fraction else cores
    encoders = min(tokenizers.tokenizers or max(fits, 1), shards)
    decoders = min(workers.workers or cores, shards)
    share = 1 if task.gpu_fraction else 0.5
    preparing = {
        "compute": ray.data.ActorPoolStrategy(
            min_size=min(decoders, cores), max_size=decoders, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": share,
        "memory": PREPARER_MEMORY,
    }
    encoding = {
        # While one shard is encoded another is committed, and a third waits.
        "compute": ray.data.ActorPoolStrategy(
            min_size=max(min(encoders, fits), 1),
            max_size=encoders,
            max_tasks_in_flight_per_actor=4,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        "num_cpus": 0 if task.gpu_fraction else share,
        "num_gpus": task.gpu_fraction,
    }
    return preparing, encoding


class _Planner:
    """Actor: lists tars and clip shards and reads headers, in child processes."""

    def __init__(
        self,
        settings: SampleSettings,
        corpus: CorpusSettings,
        storage: StorageSettings,
        workers: WorkerSettings,
        extra: list[pa.Field],
    ) -> None:
        self._settings, self._corpus, self._storage, self._workers = settings, corpus, storage, workers
        self._schema = pa.schema([*schema.TOKEN_PLAN, *extra])
        self._expand = IsolatedFunction(expand_source)
        self._plan = IsolatedFunction(plan_source)

    def __call__(self, sources: pa.Table) -> pa.Table:
        tables = [self._planned(row) for row in sources.to_pylist()]
        return pa.concat_tables([self._schema.empty_table(), *tables], promote_options="permissive")

    def _planned(self, row: dict[str, Any]) -> pa.Table:
        """Plan rows of a source: of what is in it, or else of itself, so that tokenizing it says what ails it."""
        if row["kind"] == "video":
            return self._table(self._segments(row))
        workers = self._workers
        try:
            inside = tried(self._expand, (row, self._storage, self._corpus), workers.time_limit, workers.attempts)
        except Failed:
            return self._table([plan_unit(row)])
        if row["kind"] == "clips":
            return inside if inside.num_rows else self._table([row])
        if not inside.num_rows:
            return self._table([plan_unit(row)])
        members = inside.to_pylist()
        return self._table([plan for member in members for plan in self._member(member)])

    def _member(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        return self._segments(row) if row["kind"] == "video" else [plan_unit(row)]

    def _segments(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        limit = min(HEADER_TIME_LIMIT, self._workers.time_limit)
        try:
            segments = tried(self._plan, (row, self._settings, self._storage), limit, self._workers.attempts)
        except Failed:
            segments = [whole_source(row, self._settings)]
        return plan_video(segments, self._settings)

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=self._schema)


class _Preparer:
    """Actor: makes one shard at a time ready; a child process does the reading and decoding."""

    def __init__(self, settings: PrepareSettings, storage: StorageSettings, workers: WorkerSettings) -> None:
        self._settings, self._storage, self._workers = settings, storage, workers
        self._prepare = IsolatedFunction(prepare_row)

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        told = time.monotonic()
        shard = ShardBuilder(plan)
        try:
            for row in plan.to_pylist():
                self._sample(row, shard)
                if time.monotonic() - told > TELL_EVERY:
                    yield waiting_block()
                    told = time.monotonic()
            yield shard.to_block()
        except Exception as failure:
            # As in `_Tokenizer`, which passes it on.
            yield failed_block(plan["shard"][0].as_py(), repr(failure))

    def _sample(self, row: dict[str, Any], shard: ShardBuilder) -> None:
        arguments = (row, self._settings, self._storage)
        try:
            shard.add(row, tried_sample(self._prepare, arguments, row, self._workers, "tokenize"))
        except Rejected as reject:
            shard.rejects.append(reject.row)


class _Tokenizer:
    """Actor: encodes and commits prepared shards. Two calls overlap, but only one of them is on the device."""

    def __init__(self, output: str, storage: StorageSettings, task: TokenizeTask) -> None:
        self._folder, self._task = Folder(output, storage), task
        self._device = threading.Lock()
        # Loaded while the first shards are prepared. What goes wrong is told by every call that asks for it.
        self._encoder = ThreadPoolExecutor(1).submit(self._load)

    def __call__(self, block: pa.Table) -> pa.Table:
        name, error = block["shard"][0].as_py(), block["error"][0].as_py()
        counts: dict[str, float] = {}
        if name and not error:
            try:
                counts = self._make(PreparedShard.from_block(block, self._task.prepare))
            except Exception as failure:
                # The shard stays pending, and the driver can say why. Raising would only lose the reason.
                error = repr(failure)
        return progress_record(COUNTED, counts, f"{name}: {error}" if error else None)

    def _load(self) -> "Encoder":
        from videolavit.records.encode import Encoder  # torch, which the other actors do without

        return Encoder(self._task.encode, self._task.tokenizers, self._task.device)

    def _make(self, shard: PreparedShard) -> dict[str, float]:
        with self._device:
            rows = self._encoder.result().rows(shard)
        metadata = self._task.tokenizers.metadata()
        with ShardWriter(self._folder, shard.name, shard.extra(), TOKENS, metadata) as writer:
            if rows.num_rows:
                writer.add(rows)
            for reject in shard.rejects:
                writer.reject(reject)
            writer.commit()
            counts = writer.counts
        rejects = len(shard.rejects)
        return {
            **counts,
            "samples": rows.num_rows + rejects,
            "tokens": counts["visual_tokens"] + counts["motion_tokens"],
            "rejects": rejects,
        }
