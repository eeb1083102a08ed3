"""From the data order to the micro batches of a rank, ahead of the training."""

import queue
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from videolavit.media import MediaError
from videolavit.models.objective import Batch

from .component import Collate
from .data import DataError, Item, Stream

LOOK_AHEAD = 256
"""Samples of which one must be loadable, where a rank has none that it can use."""


@dataclass(frozen=True)
class Reject:
    """A sample that could not be loaded."""

    source: str
    position: int
    error_type: str
    message: str


@dataclass(frozen=True, eq=False)
class StepData:
    """What a rank computes in an optimizer step.

    Attributes:
        batches: Micro batches, as many on every rank.
        state: Of the stream behind the step.
        rejects: Samples that are left out of it.
    """

    batches: list[Batch]
    state: dict[str, int]
    rejects: list[Reject]


class Loader:
    """Takes the items of all ranks from a stream, and loads those of one.

    Args:
        stream: The same on every rank.
        batch: Items of a step over all ranks.
        micro_batch: Items of a micro batch.
        threads: That load items; 0 loads in the caller.
        prefetch: Steps that are ready ahead.

    Raises:
        DataError: the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        stream: Stream,
        collate: Collate,
        batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        if batch % world:
            raise DataError(
                f"a batch of {batch} cannot be divided among {world} ranks; choose a multiple of {world}, "
                "or another number of workers"
            )
        self._stream, self._collate, self._batch, self._micro = stream, collate, batch, micro_batch
        self._rank, self._world, self._threads, self._prefetch = rank, world, threads, prefetch
        self._stand_in: Batch | None = None
        self.wait_seconds = 0.0

    def __iter__(self) -> Generator[StepData, None, None]:
        if self._threads == 0:
            while True:
                started = time.perf_counter()
                data = self._load(self._stream.take(self._batch), None)
                self.wait_seconds += time.perf_counter() - started
                yield data
        else:
            yield from self._ahead()

    def _ahead(self) -> Generator[StepData, None, None]:
        ready: queue.Queue[StepData | BaseException] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(ready, stop), daemon=True, name="loader")
        thread.start()
        try:
            while True:
                started = time.perf_counter()
                data = ready.get()
                self.wait_seconds += time.perf_counter() - started
                if isinstance(data, BaseException):
                    raise data
                yield data
        finally:
            stop.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(0.05)

    def _produce(self, ready: "queue.Queue[StepData | BaseException]", stop: threading.Event) -> None:
        with ThreadPoolExecutor(self._threads, "loader") as pool:
            while not stop.is_set():
                try:
                    data: StepData | BaseException = self._load(self._stream.take(self._batch), pool)
                except BaseException as error:  # it is raised where the data is wanted
                    data = error
                while not stop.is_set():
                    try:
                        ready.put(data, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if isinstance(data, BaseException):
                    return

    def _load(self, items: list[Item], pool: ThreadPoolExecutor | None) -> StepData:
        state = self._stream.state()
        own = items[self._rank :: self._world]
        loaded = list(pool.map(_try, own) if pool else map(_try, own))
        batches, rejects = [], []
        for start in range(0, len(own), self._micro):
            part = list(zip(own[start : start + self._micro], loaded[start : start + self._micro], strict=True))
            rejects += [sample for _, sample in part if isinstance(sample, Reject)]
            good = [(item, sample) for item, sample in part if not isinstance(sample, Reject)]
            batches.append(self._collated(good))
        return StepData(batches, state, rejects)

    def _collated(self, good: Sequence[tuple[Item, Any]]) -> Batch:
        if good:
            batch = self._collate([item for item, _ in good], [sample for _, sample in good])
            if self._stand_in is None:
                self._stand_in = _without_weight(batch)
            return batch
        if self._stand_in is None:
            self._stand_in = self._look_ahead()
        return self._stand_in

    def _look_ahead(self) -> Batch:
        """A batch without weight, of the first sample to come that can be loaded; the stream stays where it is."""
        state = self._stream.state()
        items = self._stream.take(LOOK_AHEAD)
        self._stream.seek(state)
        for item in items:
            sample = _try(item)
            if not isinstance(sample, Reject):
                return _without_weight(self._collate([item], [sample]))
        raise _none_usable(items, sample)


def fixed_batches(items: Sequence[Item], collate: Collate, micro_batch: int, rank: int, world: int) -> list[Batch]:
    """The micro batches of a fixed set of items for a rank, as many on every rank; what cannot be loaded is left out.

    Raises:
        DataError: none can be used.
    """
    good = usable(items)
    groups = [good[start : start + micro_batch] for start in range(0, len(good), micro_batch)]
    batches = [collate([item for item, _ in group], [sample for _, sample in group]) for group in groups]
    missing = -len(batches) % world
    return [*batches, *[_without_weight(batches[0])] * missing][rank::world]


def _without_weight(batch: Batch) -> Batch:
    """What a rank computes in place of samples that it does not have."""
    return replace(batch, counts=dict.fromkeys(batch.counts, 0.0), tokens={}, size=0, flops=0.0, weight=0.0)


def usable(items: Sequence[Item]) -> list[tuple[Item, Any]]:
    """Items and what they loaded, without those that cannot be.

    Raises:
        DataError: none can.
    """
    loaded = [(item, _try(item)) for item in items]
    good = [(item, sample) for item, sample in loaded if not isinstance(sample, Reject)]
    if not good:
        raise _none_usable(items, loaded[-1][1])
    return good


def _none_usable(items: Sequence[Item], last: Reject) -> DataError:
    return DataError(f"none of {len(items)} samples can be used; the last, of {last.source}: {last.message}")


def _try(item: Item) -> Any:
    try:
        return item.load()
    except MediaError as error:
        return Reject(item.source, item.position, type(error).__name__, str(error))
