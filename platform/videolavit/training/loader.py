"""From the data order to the micro batches of a rank, ahead of the training."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from videolavit.models.objective import Batch

from .component import Collate
from .data import DataError, Item, Stream
from .rank_share import RankShare, RemoteLoader, SkippedSample, loaded

LOOK_AHEAD = 256
"""Samples of which one must be loadable, where a rank has none that it can use."""


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
    rejects: list[SkippedSample]


class Loader:
    """Takes the items of all ranks from a stream, and loads those of one.

    Args:
        stream: The same on every rank.
        share: Of this rank.
        steps: That are loaded, from where the stream is.
        threads: That load items; 0 loads in the caller.
        prefetch: Steps that are ready ahead.
        feed: Loads the items in place of the threads.
    """

    def __init__(
        self,
        stream: Stream,
        collate: Collate,
        share: RankShare,
        steps: int,
        threads: int = 2,
        prefetch: int = 2,
        feed: RemoteLoader | None = None,
    ) -> None:
        self._stream, self._collate, self._share, self._steps = stream, collate, share, steps
        self._threads, self._prefetch, self._feed = threads, prefetch, feed
        self._stand_in: Batch | None = None
        self.wait_seconds = 0.0

    def __iter__(self) -> Generator[StepData, None, None]:
        with contextlib.closing(self._ahead() if self._threads else self._data()) as steps:
            while True:
                started = time.perf_counter()
                data = next(steps, None)
                self.wait_seconds += time.perf_counter() - started
                if data is None:
                    return
                yield data

    def _ahead(self) -> Generator[StepData, None, None]:
        ready: queue.Queue[StepData | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()
        thread = threading.Thread(target=self._produce, args=(ready, stop), daemon=True, name="loader")
        thread.start()
        try:
            while (data := ready.get()) is not None:
                if isinstance(data, BaseException):
                    raise data
                yield data
        finally:
            stop.set()
            while thread.is_alive():
                while not ready.empty():
                    ready.get_nowait()
                thread.join(0.05)

    def _produce(self, ready: "queue.Queue[StepData | BaseException | None]", stop: threading.Event) -> None:
        def put(data: StepData | BaseException | None) -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(data, timeout=0.1)
                    break

        try:
            with contextlib.closing(self._data()) as steps:
                for step in steps:
                    put(step)
                    if stop.is_set():
                        return
            put(None)
        except BaseException as error:  # it is raised where the data is wanted
            put(error)

    def _data(self) -> Generator[StepData, None, None]:
        with self._loading() as load:
            for _ in range(self._steps):
                parts = self._share.take(self._stream)
                yield self._step(parts, load(parts))

    @contextlib.contextmanager
    def _loading(self) -> Iterator[Callable[[list[list[Item]]], list[list[Any]]]]:
        """What loads the items of micro batches."""
        if self._feed is not None:
            with contextlib.closing(self._feed(self._share, self._stream.state(), self._steps)) as fed:
                yield lambda parts: [next(fed) for _ in parts]
        elif self._threads:
            with ThreadPoolExecutor(self._threads, "loader") as pool:
                yield lambda parts: [list(part) for part in [pool.map(loaded, part) for part in parts]]
        else:
            yield lambda parts: [[loaded(item) for item in part] for part in parts]

    def _step(self, parts: list[list[Item]], samples: list[list[Any]]) -> StepData:
        state = self._stream.state()
        batches, rejects = [], []
        for items, found in zip(parts, samples, strict=True):
            rejects += [sample for sample in found if isinstance(sample, SkippedSample)]
            good = [pair for pair in zip(items, found, strict=True) if not isinstance(pair[1], SkippedSample)]
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
            sample = loaded(item)
            if not isinstance(sample, SkippedSample):
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
    pairs = [(item, loaded(item)) for item in items]
    good = [(item, sample) for item, sample in pairs if not isinstance(sample, SkippedSample)]
    if not good:
        raise _none_usable(items, pairs[-1][1])
    return good


def _none_usable(items: Sequence[Item], last: SkippedSample) -> DataError:
    return DataError(f"none of {len(items)} samples can be used; the last, of {last.source}: {last.message}")
