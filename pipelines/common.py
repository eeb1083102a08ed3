"""Shared parts of the pipelines: pools of actors, attempts with limits."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Generic

import pyarrow as pa
import ray
import ray.data

from videolavit.media import MediaError
from videolavit.media.errors import SourceUnreadable, StreamEnded
from videolavit.records.files import readable
from videolavit.records.rows import PlanRow, Reject
from videolavit.sandbox.call import Arguments, IsolatedFunction, Result
from videolavit.sandbox.errors import CallFailed, ProcessDied, ProcessNotStarted

RETRY_PAUSE = 2.0
"""Seconds before a failing storage is tried again, times the attempt."""

ENDS_KEPT = 1024
"""Videos of which an actor remembers that they are shorter than their headers declare."""

WORKER_MEMORY = 400 << 20
"""Memory of an actor with its child process, in bytes."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Settings of workers. None of them changes a clip; a limit may turn a sample into a reject.

    Args:
        workers: Decoding actors, one core each; by default as many as the cluster has cores. More than it has lets an
            autoscaling cluster grow.
        time_limit: Longest time that a segment may take, in seconds, all attempts together; a slower one is rejected.
        attempts: Attempts at a segment whose process dies or whose storage fails.
        believe_storage: Rejects a source that has become missing, forbidden or unreadable since it was planned, also
            where nothing else of its storage can be read. By default its shard is left, and the run waits and stops.
    """

    workers: int | None = None
    time_limit: float = 600.0
    attempts: int = 3
    believe_storage: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if not 0 < self.time_limit <= 1500:
            # Ray Data ends a run that has made no progress for 30 minutes.
            raise ValueError(f"time_limit must be above 0 and at most 1500 seconds, not {self.time_limit:g}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")


class Failed(Exception):
    """A call failed for good."""

    def __init__(self, reason: Exception, attempts: int) -> None:
        super().__init__(str(reason))
        self.reason, self.attempts = reason, attempts


class Rejected(Exception):
    """A sample failed for good."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message)
        self.reject = reject


def call_with_limits(
    function: IsolatedFunction[*Arguments, Result], *arguments: *Arguments, time_limit: float, attempts: int
) -> Result:
    """Calls an isolated function, with one time limit for all attempts.

    A fault of a source is its own. Only a dead process or a failing storage may be chance, and worth another attempt.

    Raises:
        Failed: with the reason.
        ProcessNotStarted: this machine cannot start a process now, which is no fault of what the call is about.
    """
    deadline = time.monotonic() + time_limit
    for attempt in range(1, attempts + 1):
        try:
            return function(*arguments, time_limit=max(deadline - time.monotonic(), 0.01))
        except ProcessNotStarted:
            raise
        except Exception as error:
            chance = isinstance(error, ProcessDied | SourceUnreadable)
            pause = RETRY_PAUSE * attempt if isinstance(error, SourceUnreadable) else 0.0
            if not chance or attempt == attempts or time.monotonic() + pause >= deadline:
                raise Failed(error, attempt) from error
            time.sleep(pause)
    raise AssertionError("a call has at least one attempt")


class SampleWork(Generic[*Arguments, Result]):
    """`call_with_limits` for rows of a plan.

    Once a segment has shown that the stream of its video is over, those behind it are rejected without a call.

    Args:
        function: Function of a row.
        stage: Name of the pipeline.
    """

    def __init__(
        self, function: IsolatedFunction[PlanRow, *Arguments, Result], workers: WorkerSettings, stage: str
    ) -> None:
        self._function, self._workers, self._stage = function, workers, stage
        self._ends: dict[str, float] = {}

    def __call__(self, row: PlanRow, *arguments: *Arguments) -> Result:
        """Calls the function.

        Raises:
            Rejected: with the reject.
            ProcessNotStarted: see `call_with_limits`.
        """
        started = time.monotonic()
        workers = self._workers
        try:
            self._check_end(row)
            return call_with_limits(
                self._function, row, *arguments, time_limit=workers.time_limit, attempts=workers.attempts
            )
        except Failed as failure:
            error = failure.reason
            self._note_end(row, error)
            is_typed = isinstance(error, MediaError | CallFailed)
            reject = Reject(
                sample_id=row.sample_id,
                source=row.source,
                start_seconds=row.start_seconds,
                stage=self._stage,
                error_type=type(error).__name__,
                message=readable(str(error) if is_typed else repr(error)),
                attempts=row.attempts + failure.attempts,
                seconds=time.monotonic() - started,
            )
            raise Rejected(reject) from error

    def _check_end(self, row: PlanRow) -> None:
        """Raises what decoding a segment behind the end of its stream would raise, after all its packets were read."""
        start = row.start_seconds or 0.0
        if start >= self._ends.get(row.source, math.inf):
            raise Failed(StreamEnded.before(start), 1)

    def _note_end(self, row: PlanRow, error: Exception) -> None:
        if isinstance(error, StreamEnded):
            start = row.start_seconds or 0.0
            self._ends[row.source] = min(start, self._ends.pop(row.source, start))
            if len(self._ends) > ENDS_KEPT:
                del self._ends[next(iter(self._ends))]


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
    """Amount of a resource, such as CPU or GPU, that the cluster has now."""
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
