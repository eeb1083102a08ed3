"""What a rank loads of a stream, and who may load it in its place."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from videolavit.media import MediaError

from .data import DataError, Item, Stream


@dataclass(frozen=True)
class SkippedSample:
    """A sample that could not be loaded."""

    source: str
    position: int
    error_type: str
    message: str


@dataclass(frozen=True)
class RankShare:
    """The part of each step that a rank computes.

    Args:
        batch: Items of a step over all ranks.
        micro_batch: Items of a micro batch.

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
    def parts(self) -> int:
        """Micro batches of a step, the same on every rank."""
        return -(-self.batch // self.world // self.micro_batch)

    def take(self, stream: Stream) -> list[list[Item]]:
        """The next step's items of this rank, a list for each micro batch. The stream goes on by the whole step."""
        own = stream.take(self.batch)[self.rank :: self.world]
        return [own[start : start + self.micro_batch] for start in range(0, len(own), self.micro_batch)]


RemoteLoader = Callable[[RankShare, dict[str, int], int], Generator[list[Any], None, None]]
"""Loads a share of the stream, from one of its states on and for so many steps, elsewhere and ahead of the training.
Yields, micro batch after micro batch, what `loaded` returns for each of its items."""


def loaded(item: Item) -> Any:
    """The sample of an item, or a SkippedSample."""
    try:
        return item.load()
    except MediaError as error:
        return SkippedSample(item.source, item.position, type(error).__name__, str(error))
