"""Data order: the sample at every position of a training.

It is a function of seed, epoch and position, and has no state but the position. So a run can stop and resume anywhere,
also on another number of ranks, and every epoch of a source holds each of its samples once.

Positions belong to lanes, whose samples come from different shards. A rank that reads some of the lanes opens only the
shards of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from videolavit.recent import Recent

PERIOD = 1024
"""Positions after which the pattern of a mixture repeats; the shares of sources are exact to a thousandth."""

DATA_ORDER = 2
"""Version of the order. A run that another version began would repeat samples of an epoch, and miss others."""

LANES = 16
"""Number of lanes. Ranks whose number divides it share no lane."""

_TURNS = np.random.default_rng(0).integers(0, LANES, PERIOD)
"""Lane of the first of each LANES positions, [PERIOD], then anew. At random, so that every lane has its share of each
source, whatever the pattern of the mixture is."""

StreamState = dict[str, Any]
"""State of a stream, as JSON values that grow as it goes on."""


class DataError(ValueError):
    """The data cannot be used for training; the message names the fix."""


class SampleSource(Protocol):
    """Samples in shards, with random access."""

    name: str
    sizes: Sequence[int]
    """Number of samples of each shard."""
    content: str
    """Digest of the samples that it lists, which does not depend on where they lie."""

    def load(self, shard: int, row: int) -> Any:
        """Loads a sample. Called from several threads.

        Raises:
            MediaError: the sample cannot be used.
        """
        ...

    def identify(self, shard: int, row: int) -> str:
        """Id of a sample, or its address, for people who look for it."""
        ...


@dataclass(frozen=True)
class SampleLocation:
    """Location of a sample: source, shard, row of the shard, and the epoch of the source."""

    source: int
    shard: int
    row: int
    epoch: int


@dataclass(frozen=True)
class Item:
    """A sample before it is loaded.

    Attributes:
        position: Position in the data order; the random numbers of the sample are derived from it.
        source: Name of its source.
        load: Loads the sample; raises MediaError if it cannot be used.
        identify: Lists the id of the sample, or of each sample whose document is in a packed row.
    """

    position: int
    source: str
    load: Callable[[], Any]
    identify: Callable[[], list[str]] = list


class DataOrder(Protocol):
    """Order that has a sample at every position."""

    def item(self, position: int) -> Item:
        """Item at a position."""
        ...


class Stream(Protocol):
    """Endless sequence of items."""

    def take(self, count: int, rank: int = 0, world: int = 1) -> list[Item]:
        """Advances by some items and returns those of a rank: every one whose number is the rank's, modulo `world`."""
        ...

    def state(self) -> StreamState:
        """State of the stream."""
        ...

    def seek(self, state: StreamState) -> None:
        """Moves the stream to a state that `state` returned, or that `joined` made of several."""
        ...


def joined(states: Sequence[StreamState]) -> StreamState:
    """State of a stream of which every rank has read its own items: the furthest of each entry."""
    return {name: max(state[name] for state in states if name in state) for name in dict.fromkeys(chain(*states))}


def lanes_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lane of each position. Of LANES positions in a row, each is in another lane."""
    rounds, places = np.divmod(positions, LANES)
    lanes: NDArray[np.int64] = (places + _TURNS[rounds % PERIOD]) % LANES
    return lanes


def positions_in(lane: int, numbers: range) -> list[int]:
    """Positions of the samples of a lane, which are counted from 0."""
    return [number * LANES + int(lane - _TURNS[number % PERIOD]) % LANES for number in numbers]


class ShuffledSource:
    """Order of one source. Every epoch shuffles the shards, and the rows within windows of some shards.

    A window's shards are divided among the lanes: neighbours come from many shards, those of one lane from few.

    Args:
        sizes: Number of samples of each shard.
        key: Seed of the order.
        window: Shards whose rows are mixed. Reading stays local.
        lanes: Lanes of the samples at some indices; by default the source is the only one.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        key: Sequence[int],
        window: int,
        lanes: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lanes_of,
    ) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._length = int(self._sizes.sum())  # once, for there may be a million shards
        self._key, self._window, self._lanes = list(key), window, lanes
        self._windows = Recent(self._shuffled_window, 16)  # lanes drift apart
        self._epochs = Recent(self._shuffled_epoch, 2)

    def __len__(self) -> int:
        return self._length

    def at(self, index: int) -> tuple[int, int, int]:
        """(epoch, shard, row) of the sample at an index that goes on counting over the epochs."""
        epoch, rest = divmod(index, len(self))
        _, ends = self._epochs(epoch)
        window = int(np.searchsorted(ends, rest, side="right"))
        shards, rows = self._windows(epoch, window)
        rest -= int(ends[window - 1]) if window else 0
        return epoch, int(shards[rest]), int(rows[rest])

    def _shuffled_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the shards, and cumulative number of samples of the windows."""
        order = np.random.default_rng([*self._key, epoch]).permutation(len(self._sizes))
        starts = np.arange(0, len(order), self._window)
        return order, np.cumsum(np.add.reduceat(self._sizes[order], starts))

    def _shuffled_window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order, ends = self._epochs(epoch)
        shards = order[window * self._window : (window + 1) * self._window]
        shard_of_row = np.repeat(shards, self._sizes[shards])
        rows = np.concatenate([np.arange(size) for size in self._sizes[shards]])
        end = epoch * len(self) + int(ends[window])
        lanes = self._lanes(np.arange(end - len(rows), end))
        rng = np.random.default_rng([*self._key, epoch, window])
        # one shard after another is dealt out, so that the rows of a lane come from as few as possible
        dealt = np.lexsort((rng.random(len(rows)), np.repeat(np.arange(len(shards)), self._sizes[shards])))
        mixed = np.lexsort((rng.random(len(rows)), np.sort(lanes)))  # each lane's rows among themselves
        chosen = np.empty_like(rows)
        chosen[np.argsort(lanes, kind="stable")] = dealt[mixed]
        return shard_of_row[chosen], rows[chosen]


class Mixture:
    """Order that mixes several sources in fixed shares. Short sources repeat.

    Args:
        sources: Sources to mix.
        weights: Share of each source; None for shares by number of samples.
        seed: Seed of the order.
        window: Shards of a source whose rows are shuffled together.

    Raises:
        DataError: a source is empty, or a weight is not above 0.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        window: int = 16,
    ) -> None:
        self.sources = list(sources)
        if not self.sources:
            raise DataError("there is no source to train on")
        for source in self.sources:
            if sum(source.sizes) == 0:
                raise DataError(f"{source.name} has no samples that this component can use")
        shares = [float(sum(source.sizes)) for source in sources] if weights is None else list(map(float, weights))
        if len(shares) != len(self.sources):
            raise DataError(f"{len(shares)} weights for {len(self.sources)} sources; give one weight for each")
        if min(shares) <= 0:
            raise DataError("the weight of a source must be above 0; leave it out instead")
        self._pattern = _interleaved([share / sum(shares) for share in shares])
        self._orders = [
            ShuffledSource(source.sizes, (seed, number), window, partial(self._lanes, number))
            for number, source in enumerate(self.sources)
        ]

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Number of positions of each source before a slot of the pattern, [PERIOD + 1, sources]."""
        chosen = self._pattern[:, None] == np.arange(len(self.sources))
        return np.concatenate([np.zeros((1, len(self.sources)), np.int64), np.cumsum(chosen, axis=0)])

    def _lanes(self, source: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Lanes of a source's samples at some indices, which go on counting over the epochs."""
        slots = np.flatnonzero(self._pattern == source)
        periods, numbers = np.divmod(indices, len(slots))
        return lanes_of(periods * PERIOD + slots[numbers])

    def source_at(self, position: int) -> int:
        """Number of the source of the sample at a position."""
        return int(self._pattern[position % PERIOD])

    def locate(self, position: int) -> SampleLocation:
        """Location of the sample at a position."""
        periods, slot = divmod(position, PERIOD)
        source = int(self._pattern[slot])
        index = int(periods * self._counts[-1, source] + self._counts[slot, source])
        epoch, shard, row = self._orders[source].at(index)
        return SampleLocation(source, shard, row, epoch)

    def item(self, position: int) -> Item:
        """Item at a position."""
        location = self.locate(position)
        source, shard, row = self.sources[location.source], location.shard, location.row
        return Item(position, source.name, lambda: source.load(shard, row), lambda: [source.identify(shard, row)])


class SampleStream:
    """Stream of the items of an order."""

    def __init__(self, order: DataOrder) -> None:
        self._order = order
        self._position = 0

    def take(self, count: int, rank: int = 0, world: int = 1) -> list[Item]:
        first, self._position = self._position, self._position + count
        return [self._order.item(position) for position in range(first + rank, self._position, world)]

    def state(self) -> StreamState:
        return {"position": self._position}

    def seek(self, state: StreamState) -> None:
        self._position = state["position"]


def _interleaved(shares: Sequence[float]) -> NDArray[np.int64]:
    """Pattern of PERIOD sources in which each source stays as close to its share as possible at every slot.

    The source that is furthest behind its share is next (Bresenham's line in more dimensions).
    """
    quotas = _rounded([share * PERIOD for share in shares])
    pattern, counts = np.zeros(PERIOD, np.int64), np.zeros(len(shares))
    for slot in range(PERIOD):
        behind = quotas * (slot + 1) / PERIOD - counts
        behind[counts >= quotas] = -np.inf
        pattern[slot] = int(np.argmax(behind))
        counts[pattern[slot]] += 1
    return pattern


def _rounded(quotas: Sequence[float]) -> NDArray[np.float64]:
    """Quotas as whole numbers of the same sum, at least 1 each. The largest remainders are rounded up."""
    whole = np.maximum(np.floor(quotas), 1)
    remainders = np.asarray(quotas) - whole
    for _ in range(round(sum(quotas) - whole.sum())):
        behind = int(np.argmax(remainders))
        whole[behind] += 1
        remainders[behind] -= 1
    while whole.sum() > PERIOD:
        whole[int(np.argmax(whole))] -= 1
    return whole
