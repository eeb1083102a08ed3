"""Making of shards as the driver sees it: it counts what comes, and names what is silent instead of waiting for it."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import ray
import ray.data

from videolavit.progress import OnProgress, Progress
from videolavit.records.storage import Folder
from videolavit.records.traffic import S3_TRAFFIC

from .common import cluster_has
from .data_metrics import DataMetrics
from .faults import STOP_AFTER, FailingStorage, failing_output, failing_storage
from .live import LIVE_FILE, LiveFile, LiveRun
from .shard_records import Listener, ShardRecord, records_of, stop_dataset
from .watch import ShardWatch

TICK = 1.0
"""Longest time between two looks at the shards in work, in seconds."""

UNBEGUN_EVERY = 60.0
"""Seconds between two lines about workers that do not begin."""


@dataclass(frozen=True)
class Halt:
    """End of the work before its time.

    Args:
        reason: Line for people.
        storage: Storage that does not give its files; None for other reasons.
        is_final: True if another try in this start would not help.
    """

    reason: str
    storage: FailingStorage | None = None
    is_final: bool = False


@dataclass
class ShardMaking:
    """One execution of a pipeline over shards that are left.

    Args:
        name: Name of the pipeline.
        describe: Returns the line for people about the counts so far and the seconds since the beginning.
        dataset: Makes the shards; its rows are records.
        total: Samples of the shards.
        folder: Folder of the run.
    """

    name: str
    describe: Callable[[Mapping[str, float], float], str]
    dataset: "ray.data.Dataset"
    total: int
    folder: Folder
    on_progress: OnProgress

    def __post_init__(self) -> None:
        self._watch = ShardWatch(self.total, time.monotonic)
        self._metrics = DataMetrics(self.name)
        self._file = LiveFile(partial(self.folder.replace, LIVE_FILE))
        self._started = time.time()
        self._failing: list[Halt] = []
        self._said = time.monotonic()

    def run(self) -> Halt | None:
        """Makes the shards; returns why the work was given up, if it was."""
        self.on_progress(Progress(self.name, 0, self.total))
        listener = Listener(records_of(self.dataset))
        try:
            while (records := listener.next(TICK)) is not None:
                for record in records:
                    halt = self._take(record)
                    if halt is not None:
                        return halt
                if not records:
                    halt = self._look()
                    if halt is not None:
                        return halt
                self._metrics.show(self._watch)
                self._file.update(self._state)
            return self._failing[-1] if self._failing and self._failing[-1].storage else None
        finally:
            self._file.update(lambda: dataclasses.replace(self._state(), ended=True), now=True)
            stop_dataset(self.dataset)

    def _take(self, record: ShardRecord) -> Halt | None:
        """Counts a record; returns why to give up, if the last shards failed for one reason."""
        self._watch.note(record)
        self._metrics.add(record)
        error = record["error"]
        if error is not None:
            self._failed(error)
            if len(self._failing) == STOP_AFTER:
                return self._failing[-1]
        elif record["counts"].get("samples"):
            self._failing = []
        counts = self._watch.counts
        line = self.describe(counts, max(time.time() - self._started, 1e-9))
        self.on_progress(Progress(self.name, counts["samples"], self.total, line))
        return None

    def _failed(self, error: str) -> None:
        """Reports a failed shard, and remembers a storage that made it fail."""
        storage, output = failing_storage(error), failing_output(error)
        if storage is not None:
            self._failing.append(Halt(storage.reason, storage))
            error = f"the storage fails: {storage.reason}"
        elif output is not None:
            self._failing.append(Halt(output, is_final=True))
        else:
            self._failing = []
        self.on_progress(Progress("failed shard", message=error))

    def _look(self) -> Halt | None:
        """Names what is silent; returns why to give up, if nothing is heard any more."""
        watch = self._watch
        for one in watch.newly_silent():
            silent = time.monotonic() - one.heard
            message = f"{one.shard} on {one.node} has reported nothing for {silent:.0f} s"
            self.on_progress(Progress("silent shard", message=message))
        if watch.stands_still:
            return Halt(f"nothing was heard for {time.monotonic() - watch.heard:.0f} s of {watch.silence()}")
        if watch.never_begins:
            return Halt("no worker has begun: the cluster gives the run none", is_final=True)
        if not watch.has_begun and time.monotonic() - self._said > UNBEGUN_EVERY:
            self._said = time.monotonic()
            there = f"the cluster has {cluster_has('CPU'):g} cores on {len(ray.nodes())} nodes"
            waited = time.time() - self._started
            self.on_progress(Progress("workers", message=f"no worker has begun for {waited:.0f} s; {there}"))
        return None

    def _state(self) -> LiveRun:
        watch, now = self._watch, time.monotonic()
        counts = watch.counts
        return LiveRun(
            name=self.name,
            started=self._started,
            done=counts["samples"],
            total=self.total,
            rate=watch.rate,
            message=self.describe(counts, max(time.time() - self._started, 1e-9)),
            rejects=dict(watch.rejects.most_common()),
            nodes={node: dataclasses.asdict(shards) for node, shards in sorted(watch.nodes.items())},
            working=[
                {"shard": one.shard, "node": one.node, "seconds": now - one.began, "silent": now - one.heard}
                for one in watch.by_silence
            ],
            failures=list(watch.failures),
            s3=S3_TRAFFIC.counts,
        )
