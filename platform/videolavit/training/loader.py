"""Loading of a rank's micro batches, ahead of the training."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from videolavit.media import MediaError
from videolavit.media.errors import SourceForbidden, SourceMissing, SourceUnreadable
from videolavit.models.objective import Batch

from .component import Collate
from .data import DataError, Item, Stream, StreamState

LOOK_AHEAD = 256
"""Samples that are tried where a rank has none that can be loaded."""

LOAD_AGAIN_SECONDS = (0.2, 1.0)
"""Pauses before a sample whose file is missing, forbidden or unreadable is tried again, in seconds."""

STORAGE_WAIT_SECONDS = (5.0, 10.0, 15.0, 30.0, 60.0)
"""Pauses before a file of a remote storage that fails is tried again, in seconds."""

Loaded = TypeVar("Loaded")

_FAULTS_OF_STORAGE = (SourceMissing, SourceForbidden, SourceUnreadable)


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be loaded."""

    source: str
    position: int
    error_type: str
    message: str


@dataclass(frozen=True)
class RankSampler:
    """Divides the items of every optimizer step among the ranks, and those of a rank into micro batches.

    Args:
        batch: Items of a step over all ranks.
        micro_batch: Items of a micro batch.
        rank: Rank whose items are taken.
        world: Number of ranks.

    Raises:
        DataError: the batch cannot be divided among the ranks.
    """

    batch: int
    micro_batch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise DataError(
                f"a batch of {self.batch} cannot be divided among {self.world} ranks; choose a multiple of "
                f"{self.world}, or another number of workers"
            )

    @property
    def micro_batches(self) -> int:
        """Micro batches per step; the number is the same on every rank."""
        return -(-self.batch // self.world // self.micro_batch)

    def take(self, stream: Stream) -> list[list[Item]]:
        """Items of the rank's micro batches of the next step. The stream advances by the whole step."""
        own = stream.take(self.batch, self.rank, self.world)
        return [own[start : start + self.micro_batch] for start in range(0, len(own), self.micro_batch)]


RemoteLoader = Callable[[RankSampler, StreamState, int], Generator[list[Any], None, None]]
"""Loads samples outside of this process. Called with the rank's sampler, the state of the stream to start from, and a
number of steps; yields the results of `load_item` for the items of each micro batch, in order."""


def load_item(item: Item, pauses: Sequence[float] = LOAD_AGAIN_SECONDS) -> Any:
    """Loads the sample of an item; a SkippedSample stands for one that cannot be loaded.

    Args:
        pauses: Pauses before it is tried again where a storage may be the reason, in seconds.
    """
    try:
        return load_again(item.load, _FAULTS_OF_STORAGE, pauses)
    except MediaError as error:
        return SkippedSample(item.source, item.position, type(error).__name__, str(error))


def load_again(
    load: Callable[[], Loaded], faults: tuple[type[Exception], ...], pauses: Sequence[float] = LOAD_AGAIN_SECONDS
) -> Loaded:
    """Returns what a function loads; after a fault that a storage may have caused, it is tried again.

    Args:
        pauses: Pauses before the further tries, in seconds.

    Raises:
        Exception: what the last try raised, or any error that is none of the faults.
    """
    for pause in pauses:
        try:
            return load()
        except faults:
            time.sleep(pause)
    return load()


@dataclass(frozen=True, eq=False)
class StepData:
    """Data of an optimizer step on one rank.

    Attributes:
        batches: Micro batches; every rank has the same number of them.
        state: State of this rank's stream after the step.
        skipped: Samples that could not be loaded.
        items: Items of each micro batch, without those that could not be loaded.
    """

    batches: list[Batch]
    state: StreamState
    skipped: list[SkippedSample]
    items: list[list[Item]]


class Loader:
    """Iterates over the optimizer steps of a rank; micro batches are loaded ahead by threads or by a remote loader.

    Args:
        stream: Data of all ranks; it must be in the same state on each of them.
        sampler: Sampler of this rank.
        steps: Number of steps, from the state of the stream on.
        threads: Threads that load items; 0 loads them in the caller.
        prefetch: Steps that are loaded ahead.
        remote: Loads the items instead of the threads.

    Attributes:
        wait_seconds: Seconds that the caller has waited for data.
    """

    def __init__(
        self,
        stream: Stream,
        collate: Collate,
        sampler: RankSampler,
        steps: int,
        threads: int = 2,
        prefetch: int = 2,
        remote: RemoteLoader | None = None,
    ) -> None:
        self._stream, self._collate, self._sampler, self._steps = stream, collate, sampler, steps
        self._threads, self._prefetch, self._remote = threads, prefetch, remote
        self._placeholder: Batch | None = None
        self.wait_seconds = 0.0

    def __iter__(self) -> Generator[StepData, None, None]:
        with contextlib.closing(self._prefetched() if self._threads else self._load_steps()) as steps:
            while True:
                started = time.perf_counter()
                data = next(steps, None)
                self.wait_seconds += time.perf_counter() - started
                if data is None:
                    return
                yield data

    def _prefetched(self) -> Generator[StepData, None, None]:
        """Runs `_load_steps` in a thread of its own."""
        ready: queue.Queue[StepData | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()

        def put(data: StepData | BaseException | None) -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(data, timeout=0.1)
                    break

        def produce() -> None:
            try:
                with contextlib.closing(self._load_steps()) as steps:
                    for step in steps:
                        put(step)
                        if stop.is_set():
                            return
                put(None)
            except BaseException as error:  # raised again in the consumer
                put(error)

        thread = threading.Thread(target=produce, daemon=True, name="loader")
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

    def _load_steps(self) -> Generator[StepData, None, None]:
        with self._item_loader() as load:
            for _ in range(self._steps):
                micro_batches = self._sampler.take(self._stream)
                samples, state = load(micro_batches), self._stream.state()
                batches: list[Batch] = []
                skipped: list[SkippedSample] = []
                used: list[list[Item]] = []
                for items, loaded in zip(micro_batches, samples, strict=True):
                    skipped += [sample for sample in loaded if isinstance(sample, SkippedSample)]
                    pairs = zip(items, loaded, strict=True)
                    usable = [pair for pair in pairs if not isinstance(pair[1], SkippedSample)]
                    batches.append(self._batch(usable))
                    used.append([item for item, _ in usable])
                yield StepData(batches, state, skipped, used)

    @contextlib.contextmanager
    def _item_loader(self) -> Iterator[Callable[[list[list[Item]]], list[list[Any]]]]:
        """Function that loads the items of a step's micro batches."""
        if self._remote is not None:
            with contextlib.closing(self._remote(self._sampler, self._stream.state(), self._steps)) as loaded:
                yield lambda micro_batches: [next(loaded) for _ in micro_batches]
        elif self._threads:
            with ThreadPoolExecutor(self._threads, "loader") as pool:
                yield lambda micro_batches: [
                    list(samples) for samples in [pool.map(load_item, items) for items in micro_batches]
                ]
        else:
            yield lambda micro_batches: [[load_item(item) for item in items] for items in micro_batches]

    def _batch(self, loaded: Sequence[tuple[Item, Any]]) -> Batch:
        """Collates a micro batch; without samples it is a placeholder of weight 0, so that ranks stay in step."""
        if loaded:
            batch = self._collate([item for item, _ in loaded], [sample for _, sample in loaded])
            if self._placeholder is None:
                self._placeholder = _without_weight(batch)
            return batch if batch.sources else replace(batch, sources=[item.source for item, _ in loaded])
        if self._placeholder is None:
            state, sampler = self._stream.state(), self._sampler
            items = self._stream.take(LOOK_AHEAD * sampler.world, sampler.rank, sampler.world)
            self._stream.seek(state)
            item, sample = load_items(items, limit=1)[0]
            self._placeholder = _without_weight(self._collate([item], [sample]))
        return self._placeholder


def validation_batches(items: Sequence[Item], collate: Collate, micro_batch: int, rank: int, world: int) -> list[Batch]:
    """Micro batches of fixed items for a rank; every rank has the same number. Items that cannot be loaded are skipped.

    Raises:
        DataError: none can be loaded.
    """
    loaded = load_items(items)
    groups = [loaded[start : start + micro_batch] for start in range(0, len(loaded), micro_batch)]
    batches = [collate([item for item, _ in group], [sample for _, sample in group]) for group in groups]
    missing = -len(batches) % world
    return [*batches, *[_without_weight(batches[0])] * missing][rank::world]


def load_items(items: Sequence[Item], limit: int | None = None) -> list[tuple[Item, Any]]:
    """Items with their samples, without those that cannot be loaded.

    Args:
        limit: Number of samples after which loading stops; nothing is tried again then.

    Raises:
        DataError: none can be loaded.
    """
    loaded: list[tuple[Item, Any]] = []
    for item in items:
        sample = load_item(item, LOAD_AGAIN_SECONDS if limit is None else ())
        if not isinstance(sample, SkippedSample):
            loaded.append((item, sample))
            if len(loaded) == limit:
                break
    if not loaded:
        raise DataError(f"none of {len(items)} samples can be used; the last, of {sample.source}: {sample.message}")
    return loaded


def _without_weight(batch: Batch) -> Batch:
    return replace(batch, counts=dict.fromkeys(batch.counts, 0.0), tokens={}, size=0, flops=0.0, weight=0.0)
