"""Videos to clip shards.

    sources -> plan (1:N, headers only) -> shards fixed in OUT/plan -> decompose (1 shard : 1 file) -> OUT/clips

The plan is committed before any work starts, and a shard is committed in one step under a name that the plan fixed.
Whatever is killed, and however often Ray repeats a task, a shard is therefore made once, with the same rows. Ray Data's
own checkpointing is not used: it loses rows under fan-out and repeats rejected ones.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from videolavit.isolation import IsolatedFunction, ProcessDied, TimeLimitExceeded
from videolavit.media import MediaError
from videolavit.media.errors import SourceUnreadable
from videolavit.records import schema
from videolavit.records.inputs import EXTRA, TAR_JSON
from videolavit.records.plan import assign_shards, extra_fields, is_whole_tar, plan_table, whole_source
from videolavit.records.samples import SampleSettings, extra_columns
from videolavit.records.shards import Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings

SOURCES_PER_PLAN = 20_000
"""Sources that are planned in one go: an interrupted planning of a large corpus repeats at most so many headers."""

SOURCES_PER_TASK = 16
HEADER_TIME_LIMIT = 60.0
RETRY_PAUSE = 2.0
"""Seconds before a failing storage is tried again, times the attempt."""

TELL_EVERY = 1.0
"""Seconds between the progress records of an actor: each is a block that Ray has to handle."""

WORKER_MEMORY = 400 << 20

_PLANNED = pa.schema([*schema.PLAN, ("pixels", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How work is run. None of it changes a clip; a limit may turn a sample into a reject.

    Args:
        workers: Decoding actors, one core each; by default as many as the cluster has cores. More than it has lets an
            autoscaling cluster grow.
        time_limit: Seconds a segment may take, all tries together; a slower one is rejected.
        attempts: Tries of a segment whose process dies or whose storage fails.
    """

    workers: int | None = None
    time_limit: float = 600.0
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if not 0 < self.time_limit <= 1500:
            # Ray Data ends a run that has made no progress for 30 minutes.
            raise ValueError(f"time_limit must be above 0 and at most 1500 seconds, not {self.time_limit:g}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")


def plan_segments(
    sources: pa.Table, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings
) -> Iterator[pa.Table]:
    """Reads the sources' headers and yields tables of plan rows that have no shard yet."""
    blocks = [sources.slice(start, SOURCES_PER_TASK) for start in range(0, sources.num_rows, SOURCES_PER_TASK)]
    dataset = _from_blocks(blocks).map_batches(
        _Planner,
        fn_constructor_kwargs={
            "settings": settings,
            "storage": storage,
            "workers": workers,
            "extra": _extra_of_sources(sources),
        },
        batch_size=None,
        batch_format="pyarrow",
        **_actor_pool(workers, len(blocks)),
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def commit_plan(ledger: Ledger, planned: pa.Table, generation: int) -> bool:
    """Assigns shards to planned segments and publishes the plan as the given generation.

    The generation must be the number of plans from which the caller took what is already planned. False if another
    run has published since: then some of the segments may be planned twice, and nothing is published.
    """
    rows = assign_shards(planned.drop_columns(["shard"]).to_pylist(), generation)
    return ledger.add_plan(generation, plan_table(rows, extra_fields(planned.schema)))


def pending_shards(ledger: Ledger) -> list[pa.Table]:
    """Plan rows of every shard that is not committed, a table a shard, the most work first."""
    done = ledger.committed()
    pending: list[tuple[float, pa.Table]] = []
    for plan in ledger.planned():
        for shard, start, count in _runs(plan["shard"].to_pylist()):
            if shard not in done:
                table = plan.slice(start, count)
                pending.append((pa.compute.sum(table["cost"]).as_py(), table))
    return [table for _, table in sorted(pending, key=lambda item: -item[0])]


def decompose_shards(
    shards: list[pa.Table], folder: Folder, settings: SampleSettings, workers: WorkerSettings
) -> Iterator[dict[str, Any]]:
    """Makes and commits shards; yields progress records, the last of a failed shard with its `error`."""
    dataset = _from_blocks(shards).map_batches(
        _ShardMaker,
        fn_constructor_kwargs={
            "output": folder.url,
            "storage": folder.settings,
            "settings": settings,
            "workers": workers,
        },
        batch_size=None,
        batch_format="pyarrow",
        **_actor_pool(workers, len(shards)),
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


class _Planner:
    """Actor: reads headers in a child process, since even a header can crash or hang a demuxer."""

    def __init__(
        self, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings, extra: list[pa.Field]
    ) -> None:
        self._settings, self._storage, self._workers = settings, storage, workers
        self._schema = pa.schema([*_PLANNED, *extra])
        self._members = IsolatedFunction("videolavit.records.inputs:tar_members")
        self._plan = IsolatedFunction("videolavit.records.plan:plan_source")

    def __call__(self, sources: pa.Table) -> pa.Table:
        rows = [segment for row in sources.to_pylist() for one in self._expand(row) for segment in self._segments(one)]
        return pa.Table.from_pylist(rows, schema=self._schema)

    def _expand(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """A tar's members; any other source, and a tar without members, as it is."""
        if not is_whole_tar(row):
            return [row]
        call = partial(self._members, row["url"], self._storage)
        try:
            members = _tried(call, self._workers.time_limit, self._workers.attempts)
        except Exception:
            return [row]  # decomposing it will say what ails it
        return [row | member for member in members] or [row]

    def _segments(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        if is_whole_tar(row):
            return [whole_source(row, self._settings)]
        call = partial(self._plan, row, self._settings, self._storage)
        try:
            return _tried(call, min(HEADER_TIME_LIMIT, self._workers.time_limit), self._workers.attempts)  # type: ignore[no-any-return]
        except Exception:
            return [whole_source(row, self._settings)]


class _ShardMaker:
    """Actor: makes one shard at a time; a child process does the decoding."""

    def __init__(
        self, output: str, storage: StorageSettings, settings: SampleSettings, workers: WorkerSettings
    ) -> None:
        pa.set_memory_pool(pa.system_memory_pool())  # gives back what writing a row took; others keep it
        self._folder = Folder(output, storage)
        self._storage, self._settings, self._workers = storage, settings, workers
        self._decompose = IsolatedFunction("videolavit.records.samples:decompose_row")

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        name = plan["shard"][0].as_py()
        extra = [field.with_name(field.name.removeprefix(EXTRA)) for field in extra_fields(plan.schema)]
        rows = plan.to_pylist()
        counts: Counter[str] = Counter()
        error = None
        told = time.monotonic()
        try:
            with ShardWriter(self._folder, name, extra) as writer:
                for row in rows:
                    counts.update(self._sample(row, writer))
                    if time.monotonic() - told > TELL_EVERY:
                        yield _progress(counts)
                        counts.clear()
                        told = time.monotonic()
                writer.commit()
        except Exception as failure:
            # The shard stays pending, and the driver can say why. Raising would only lose the reason.
            error = f"{name}: {failure!r}"
        yield _progress(counts, error)

    def _sample(self, row: dict[str, Any], writer: ShardWriter) -> dict[str, float]:
        started = time.monotonic()
        call = partial(self._decompose, row, self._settings, self._storage)
        try:
            table = _tried(call, self._workers.time_limit, self._workers.attempts)
        except _Failed as failure:
            attempts = row["attempts"] + failure.attempts
            writer.reject(_reject(row, failure.reason, attempts, time.monotonic() - started))
            return {"samples": 1, "rejects": 1}
        writer.add(table, extra_columns(row))
        return {
            "samples": 1,
            "clips": table["num_clips"][0].as_py(),
            "video_seconds": table["end_seconds"][0].as_py() - row["start_seconds"],
        }


class _Failed(Exception):
    """A call failed for good."""

    def __init__(self, reason: Exception, attempts: int) -> None:
        super().__init__(str(reason))
        self.reason, self.attempts = reason, attempts


def _tried(call: Callable[..., Any], time_limit: float, attempts: int) -> Any:
    """Calls with one time limit for all attempts, and returns the result.

    Any fault of a source is its own. Only a dead process or a failing storage may be chance, and worth another try.

    Raises:
        _Failed: with the reason.
    """
    deadline = time.monotonic() + time_limit
    for attempt in range(1, attempts + 1):
        try:
            return call(time_limit=max(deadline - time.monotonic(), 0.01))
        except Exception as error:
            chance = isinstance(error, ProcessDied | SourceUnreadable)
            pause = RETRY_PAUSE * attempt if isinstance(error, SourceUnreadable) else 0.0
            if not chance or attempt == attempts or time.monotonic() + pause >= deadline:
                raise _Failed(error, attempt) from error
            time.sleep(pause)
    raise AssertionError("a call has at least one attempt")


def _reject(row: dict[str, Any], error: Exception, attempts: int, seconds: float) -> dict[str, Any]:
    return {
        "sample_id": row["sample_id"],
        "source": row["source"],
        "start_seconds": row["start_seconds"],
        "stage": "decompose",
        "error_type": type(error).__name__,
        "message": str(error) if isinstance(error, (MediaError, TimeLimitExceeded, ProcessDied)) else repr(error),
        "attempts": attempts,
        "seconds": seconds,
    }


def _progress(counts: Counter[str], error: str | None = None) -> pa.Table:
    columns = {
        name: pa.array([counts[name]], pa.float64()) for name in ("samples", "clips", "rejects", "video_seconds")
    }
    return pa.table(columns | {"error": pa.array([error], pa.string())})


def _extra_of_sources(sources: pa.Table) -> list[pa.Field]:
    fields = extra_fields(sources.schema)
    has_tar = any(url.lower().endswith(".tar") for url in sources["url"].to_pylist())
    described = pa.field(TAR_JSON, pa.string())
    return [*fields, described] if has_tar and described not in fields else fields


def _runs(values: list[str]) -> Iterator[tuple[str, int, int]]:
    """(value, start, count) of each run of equal neighbours."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[start]:
            yield values[start], start, index - start
            start = index


def _from_blocks(blocks: list[pa.Table]) -> "ray.data.Dataset":
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that fails for good stays pending; the others are made
    context.target_max_block_size = 1  # progress records leave the actor one by one
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed shard's reason comes as a record
    return ray.data.from_arrow([table.combine_chunks() for table in blocks])


def _actor_pool(workers: WorkerSettings, tasks: int) -> dict[str, Any]:
    """Arguments of a pool of one-core actors. Ray restarts a killed one without limit; bad input cannot kill it."""
    cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    most = max(min(workers.workers or cores, tasks), 1)
    return {
        # With a second task in its queue an actor never waits for the driver, and an autoscaling pool sees demand.
        "compute": ray.data.ActorPoolStrategy(
            min_size=min(most, cores), max_size=most, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": 1,
        "memory": WORKER_MEMORY,
    }
