"""The data order: which sample is at a position, for any position, whatever happened before.

(seed, epoch, position) -> sample, without state beyond the position. So a run can stop anywhere and go on, on another
number of ranks too, and every epoch of a source holds each of its samples once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from videolavit.recent import Recent

PERIOD = 1024
"""Positions after which the pattern of a mixture repeats: weights are kept to a thousandth."""


class DataError(ValueError):
    """The data cannot be trained on; the message names the fix."""


class SampleSource(Protocol):
    """Samples in shards, with random access."""

    name: str
    sizes: Sequence[int]
    """Samples of each shard."""

    def load(self, shard: int, row: int) -> Any:
        """A sample. Called from several threads. Raises MediaError for one that cannot be used."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a position's sample is."""

    source: int
    shard: int
    row: int
    epoch: int


@dataclass(frozen=True)
class Item:
    """A sample before it is loaded.

    Attributes:
        position: In the data order; it names the sample's random numbers.
        source: Name of its source.
        load: Reads it. Raises MediaError for one that cannot be used.
    """

    position: int
    source: str
    load: Callable[[], Any]


class DataOrder(Protocol):
    """A sample for every position."""

    def item(self, position: int) -> Item:
        """The sample at a position, before it is loaded."""
        ...


class Stream(Protocol):
    """Items in order, without end."""

    def take(self, count: int) -> list[Item]:
        """The next items."""
        ...

    def state(self) -> dict[str, int]:
        """Where the stream is, as JSON values."""
        ...

    def seek(self, state: dict[str, int]) -> None:
        """Goes to where a `state` was taken."""
        ...


class ShuffledSource:
    """The order of one source: shards in a new order every epoch, rows shuffled within windows of some shards.

    Args:
        sizes: Samples of each shard.
        key: Decides the order.
        window: Shards whose rows are mixed: reading stays local, while neighbours come from many shards.
    """

    def __init__(self, sizes: Sequence[int], key: Sequence[int], window: int) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._key, self._window = list(key), window
        self._windows = Recent(self._shuffled_window, 4)
        self._epochs = Recent(self._shuffled_epoch, 2)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def at(self, index: int) -> tuple[int, int, int]:
        """(epoch, shard, row) of the sample at an index that counts on over the epochs."""
        epoch, rest = divmod(index, len(self))
        _, ends = self._epochs(epoch)
        window = int(np.searchsorted(ends, rest, side="right"))
        shards, rows = self._windows(epoch, window)
        rest -= int(ends[window - 1]) if window else 0
        return epoch, int(shards[rest]), int(rows[rest])

    def _shuffled_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of the shards, and how many samples are in the windows up to each."""
        order = np.random.default_rng([*self._key, epoch]).permutation(len(self._sizes))
        starts = np.arange(0, len(order), self._window)
        return order, np.cumsum(np.add.reduceat(self._sizes[order], starts))

    def _shuffled_window(self, epoch: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order, _ = self._epochs(epoch)
        shards = order[window * self._window : (window + 1) * self._window]
        held = np.repeat(shards, self._sizes[shards])
        rows = np.concatenate([np.arange(size) for size in self._sizes[shards]])
        mixed = np.random.default_rng([*self._key, epoch, window]).permutation(len(rows))
        return held[mixed], rows[mixed]


class Mixture:
    """Several sources in fixed shares. Short ones repeat, and every position has its sample.

    Args:
        sources: What is mixed.
        weights: Share of each; None takes their numbers of samples, as if all were one source.
        seed: Decides the order.
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
        self._orders = [
            ShuffledSource(list(source.sizes), (seed, number), window) for number, source in enumerate(self.sources)
        ]
        self._pattern = _interleaved([share / sum(shares) for share in shares])

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """How often each source came before a place of the pattern, [PERIOD + 1, sources]."""
        came = self._pattern[:, None] == np.arange(len(self.sources))
        return np.concatenate([np.zeros((1, len(self.sources)), np.int64), np.cumsum(came, axis=0)])

    def locate(self, position: int) -> Place:
        """Where a position's sample is."""
        periods, place = divmod(position, PERIOD)
        source = int(self._pattern[place])
        index = int(periods * self._counts[-1, source] + self._counts[place, source])
        epoch, shard, row = self._orders[source].at(index)
        return Place(source, shard, row, epoch)

    def item(self, position: int) -> Item:
        """The sample at a position, before it is loaded."""
        place = self.locate(position)
        source = self.sources[place.source]
        return Item(position, source.name, lambda: source.load(place.shard, place.row))


class SampleStream:
    """The samples of an order one by one."""

    def __init__(self, order: DataOrder) -> None:
        self._order = order
        self._position = 0

    def take(self, count: int) -> list[Item]:
        first, self._position = self._position, self._position + count
        return [self._order.item(position) for position in range(first, self._position)]

    def state(self) -> dict[str, int]:
        return {"position": self._position}

    def seek(self, state: dict[str, int]) -> None:
        self._position = state["position"]


def _interleaved(shares: Sequence[float]) -> NDArray[np.int64]:
    """A pattern of PERIOD sources in which each keeps to its share as closely as it can, everywhere.

    The source that is furthest behind its share comes next (Bresenham's line in more dimensions).
    """
    quotas = _rounded([share * PERIOD for share in shares])
    pattern, came = np.zeros(PERIOD, np.int64), np.zeros(len(shares))
    for place in range(PERIOD):
        behind = quotas * (place + 1) / PERIOD - came
        behind[came >= quotas] = -np.inf
        pattern[place] = int(np.argmax(behind))
        came[pattern[place]] += 1
    return pattern


def _rounded(quotas: Sequence[float]) -> NDArray[np.float64]:
    """Whole numbers of the same sum, none below 1: those with the largest remainders are rounded up."""
    whole = np.maximum(np.floor(quotas), 1)
    remainders = np.asarray(quotas) - whole
    for _ in range(round(sum(quotas) - whole.sum())):
        behind = int(np.argmax(remainders))
        whole[behind] += 1
        remainders[behind] -= 1
    while whole.sum() > PERIOD:
        whole[int(np.argmax(whole))] -= 1
    return whole
