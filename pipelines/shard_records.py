"""Records of progress: how actors tell the driver what they made, and that they are alive.

Records are rows of a dataset, so that they come on the way that results come. An actor whose records end is cut off,
hangs, or sends what does not arrive; the driver cannot tell which, and need not.
"""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypedDict, TypeVar

import pyarrow as pa
import ray
import ray.data

from videolavit.records.traffic import with_traffic, without_traffic

Made = TypeVar("Made")

PROGRESS_EVERY = 1.0
"""Seconds between the progress records of an actor: each is a block that Ray has to handle."""

HEARTBEAT = 10.0
"""Seconds after which an actor with nothing to count says that it is alive."""

STAGE_SECONDS = "seconds_"
"""Beginning of the names of counts of seconds; the rest is the name of a stage."""


class ShardRecord(TypedDict):
    """Progress of a shard since the record before.

    Attributes:
        shard: Name of the shard.
        node: Address of the node that works on it.
        counts: Numbers to be added up, by name.
        rejected: Error type of each new reject.
        error: Reason why the shard could not be made; None if it could, or is being made.
    """

    shard: str
    node: str
    counts: dict[str, float]
    rejected: list[str]
    error: str | None


def is_last(record: ShardRecord) -> bool:
    """True for the record with which a shard ends."""
    return record["error"] is not None or record["counts"].get("shards", 0) > 0


def node_address() -> str:
    """Address of the node of this process."""
    return str(ray.util.get_node_ip_address())


def record_block(
    shard: str,
    node: str,
    counts: Mapping[str, float] | None = None,
    rejected: Iterable[str] = (),
    error: str | None = None,
) -> pa.Table:
    """Block with one record, for the driver."""
    columns = {
        "shard": pa.array([shard], pa.string()),
        "node": pa.array([node], pa.string()),
        "counts": pa.array([list((counts or {}).items())], pa.map_(pa.string(), pa.float64())),
        "rejected": pa.array([list(rejected)], pa.list_(pa.string())),
        "error": pa.array([error], pa.string()),
    }
    return with_traffic(pa.table(columns))


def records_of(dataset: "ray.data.Dataset") -> Iterator[ShardRecord]:
    """Runs a dataset and yields the records that come out, as they come."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in without_traffic(batch).to_pylist():
            yield ShardRecord(
                shard=row["shard"],
                node=row["node"],
                counts=dict(row["counts"]),
                rejected=row["rejected"],
                error=row["error"],
            )


def stop_dataset(dataset: "ray.data.Dataset") -> None:
    """Ends the execution of a dataset, whose iterator may wait for ever in another thread."""
    executor = dataset._current_executor  # Ray itself ends it when the dataset is collected
    if executor is not None:
        executor.shutdown(force=True)


class WorkThread:
    """Thread of an actor that works on one thing at a time, while the actor reports."""

    def __init__(self, threads: int = 1) -> None:
        # children that decode end with the thread that started them, so that it has to last
        self._thread = ThreadPoolExecutor(threads)

    def run(
        self, work: Callable[[], Made], alive: Callable[[bool], pa.Table | None]
    ) -> Generator[pa.Table, None, Made]:
        """Calls `work` and returns its result; meanwhile, yields what there is to tell. Raises what `work` raises.

        Args:
            alive: Returns the block to send; called at once and then every second, with True where a sign of life is
                due: at the beginning, so that what hangs from its start has a name, and after each `HEARTBEAT`.
        """
        running, silence = self._thread.submit(work), HEARTBEAT
        while True:
            block = alive(silence >= HEARTBEAT)
            if block is not None:
                silence = 0.0
                yield block
            if wait([running], PROGRESS_EVERY).done:
                return running.result()
            silence += PROGRESS_EVERY


class ShardTally:
    """Counts of a shard that no record has yet. One thread adds, another takes.

    Args:
        shard: Name of the shard.
        node: Address of the node.
    """

    def __init__(self, shard: str, node: str) -> None:
        self.shard, self.node = shard, node
        self._counts: Counter[str] = Counter()
        self._rejected: list[str] = []
        self._lock = threading.Lock()

    def add(self, **counts: float) -> None:
        """Adds counts."""
        with self._lock:
            self._counts.update(counts)

    def reject(self, error_type: str) -> None:
        """Adds a reject."""
        with self._lock:
            self._rejected.append(error_type)

    def block(self, error: str | None = None) -> pa.Table:
        """Record of what was added since the last one."""
        with self._lock:
            counts, rejected = dict(self._counts), list(self._rejected)
            self._counts.clear()
            self._rejected.clear()
        return record_block(self.shard, self.node, counts, rejected, error)

    def alive(self, is_due: bool) -> pa.Table | None:
        """Record if there are counts to tell, or a sign of life is due."""
        return self.block() if self._counts or is_due else None


class Listener:
    """Records of a dataset, taken in a thread of its own, so that the caller can do other things when none comes.

    Args:
        records: Iterator that may block for ever.
    """

    def __init__(self, records: Iterator[ShardRecord]) -> None:
        self._found: queue.Queue[ShardRecord | BaseException | None] = queue.Queue(maxsize=1000)
        threading.Thread(target=self._listen, args=(records,), daemon=True).start()

    def _listen(self, records: Iterator[ShardRecord]) -> None:
        end: BaseException | None = None
        try:
            for record in records:
                self._found.put(record)
        except BaseException as error:
            end = error
        self._found.put(end)

    def next(self, seconds: float) -> list[ShardRecord] | None:
        """Returns the next record in a list, an empty list if none comes in time, and None at the end.

        Raises what the iterator raises.
        """
        try:
            found = self._found.get(timeout=seconds)
        except queue.Empty:
            return []
        if isinstance(found, BaseException):
            raise found
        return None if found is None else [found]
