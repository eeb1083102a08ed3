"""What the pipelines share: pools of actors, tries with limits, plans and what is left of them."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from videolavit.isolation import Arguments, IsolatedFunction, ProcessDied, Result, TimeLimitExceeded
from videolavit.media import MediaError
from videolavit.media.errors import SourceUnreadable
from videolavit.records.plan import planned_extra
from videolavit.records.shards import Ledger

SOURCES_PER_PLAN = 20_000
"""Sources that are planned in one go: an interrupted planning of a large corpus repeats at most so many headers."""

SOURCES_PER_TASK = 16
HEADER_TIME_LIMIT = 60.0
"""Seconds that reading a video's header may take, all tries together."""

RETRY_PAUSE = 2.0
"""Seconds before a failing storage is tried again, times the attempt."""

TELL_EVERY = 1.0
"""Seconds between the progress records of an actor: each is a block that Ray has to handle."""

WORKER_MEMORY = 400 << 20
PLAN_BLOCK = 16 << 20
"""Bytes of planned rows that travel at once."""


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


def pending_shards(ledger: Ledger) -> list[pa.Table]:
    """Plan rows of every shard that is not committed, a table a shard, the most work first."""
    done = ledger.committed()
    pending: list[tuple[float, pa.Table]] = []
    for plan in ledger.planned():
        for shard, start, count in _runs(plan["shard"].to_pylist()):
            if shard not in done:
                table = plan.slice(start, count)
                pending.append((pc.sum(table["cost"]).as_py(), table))
    return [table for _, table in sorted(pending, key=lambda item: -item[0])]


class Failed(Exception):
    """A call failed for good."""

    def __init__(self, reason: Exception, attempts: int) -> None:
        super().__init__(str(reason))
        self.reason, self.attempts = reason, attempts


class Rejected(Exception):
    """A sample failed for good; `row` is of `schema.REJECTS`."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row["message"])
        self.row = row


def tried(
    function: IsolatedFunction[*Arguments, Result], arguments: tuple[*Arguments], time_limit: float, attempts: int
) -> Result:
    """Calls with one time limit for all attempts, and returns the result.

    Any fault of a source is its own. Only a dead process or a failing storage may be chance, and worth another try.

    Raises:
        Failed: with the reason.
    """
    deadline = time.monotonic() + time_limit
    for attempt in range(1, attempts + 1):
        try:
            return function(*arguments, time_limit=max(deadline - time.monotonic(), 0.01))
        except Exception as error:
            chance = isinstance(error, ProcessDied | SourceUnreadable)
            pause = RETRY_PAUSE * attempt if isinstance(error, SourceUnreadable) else 0.0
            if not chance or attempt == attempts or time.monotonic() + pause >= deadline:
                raise Failed(error, attempt) from error
            time.sleep(pause)
    raise AssertionError("a call has at least one attempt")


def tried_sample(
    function: IsolatedFunction[*Arguments, Result],
    arguments: tuple[*Arguments],
    row: dict[str, Any],
    workers: WorkerSettings,
    stage: str,
) -> Result:
    """`tried` for a plan row.

    Raises:
        Rejected: with the row of the reject table.
    """
    started = time.monotonic()
    try:
        return tried(function, arguments, workers.time_limit, workers.attempts)
    except Failed as failure:
        error = failure.reason
        own = isinstance(error, MediaError | TimeLimitExceeded | ProcessDied)
        reject = {
            "sample_id": row["sample_id"],
            "source": row["source"],
            "start_seconds": row["start_seconds"],
            "stage": stage,
            "error_type": type(error).__name__,
            "message": str(error) if own else repr(error),
            "attempts": row["attempts"] + failure.attempts,
            "seconds": time.monotonic() - started,
        }
        raise Rejected(reject) from error


def progress_record(names: Iterable[str], counts: Mapping[str, float], error: str | None = None) -> pa.Table:
    """A block for the driver: counts to be added up, and why a shard failed."""
    columns = {name: pa.array([counts.get(name, 0)], pa.float64()) for name in names}
    return pa.table(columns | {"error": pa.array([error], pa.string())})


def planned_by(
    planner: type, settings: Mapping[str, Any], sources: pa.Table, workers: WorkerSettings
) -> Iterator[pa.Table]:
    """Plan rows of sources, by a pool of actors.

    Args:
        planner: Class of the actors: a table of sources in, a table of plan rows out.
        settings: Its arguments, beyond `workers` and the `extra` fields of the rows.
    """
    blocks = [sources.slice(start, SOURCES_PER_TASK) for start in range(0, sources.num_rows, SOURCES_PER_TASK)]
    dataset = from_blocks(blocks, PLAN_BLOCK).map_batches(
        planner,
        fn_constructor_kwargs={**settings, "workers": workers, "extra": planned_extra(sources)},
        batch_size=None,
        batch_format="pyarrow",
        **actor_pool(workers, len(blocks)),
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def records_of(dataset: "ray.data.Dataset") -> Iterator[dict[str, Any]]:
    """Runs a dataset and yields the rows that come out, as they come."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _runs(values: list[str]) -> Iterator[tuple[str, int, int]]:
    """(value, start, count) of each run of equal neighbours."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[start]:
            yield values[start], start, index - start
            start = index


def from_blocks(blocks: list[pa.Table], block_size: int = 1) -> "ray.data.Dataset":
    """A dataset of these blocks, with Ray Data's settings as the guarantees of a run need them.

    Args:
        block_size: Bytes above which what an actor yields is cut. By default every row is a block: progress records
            leave the actor one by one.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a shard that fails for good stays pending; the others are made
    context.target_max_block_size = block_size
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # a failed shard's reason comes as a record
    return ray.data.from_arrow([table.combine_chunks() for table in blocks])


def cluster_has(resource: str) -> float:
    """How much of a resource, such as CPU or GPU, the cluster has now."""
    return float(ray.cluster_resources().get(resource, 0))


def actor_pool(workers: WorkerSettings, tasks: int) -> dict[str, Any]:
    """Arguments of a pool of one-core actors. Ray restarts a killed one without limit; bad input cannot kill it."""
    cores = max(int(cluster_has("CPU")), 1)
    most = max(min(workers.workers or cores, tasks), 1)
    return {
        # With a second task in its queue an actor never waits for the driver, and an autoscaling pool sees demand.
        "compute": ray.data.ActorPoolStrategy(
            min_size=min(most, cores), max_size=most, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": 1,
        "memory": WORKER_MEMORY,
    }
