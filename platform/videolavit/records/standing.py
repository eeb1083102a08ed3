"""Which shard accounts for a sample, where more than one plan of a run has it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from .rows import keys, planned_names

STANDING_COLUMNS = ["sample_id", "source", "url", "key", "offset", "planned_seconds", "shard"]
"""Columns of a plan that decide."""


@dataclass(frozen=True)
class Standing:
    """Samples of all plans, each once.

    Attributes:
        planned: Number of samples.
        moved: Shard of each sample that a later plan may have taken up again; empty where others took its place. Of
            all other samples, the one shard that has them accounts for them.
    """

    planned: int
    moved: Mapping[str, str]

    def holds(self, sample: str, shard: str) -> bool:
        """True if a shard that has a sample accounts for it."""
        return self.moved.get(sample, shard) == shard


def standing(sizes: Sequence[int], again: Sequence[int], read: Callable[[int], pa.Table]) -> Standing:
    """Samples as the latest plan has them. Holds those in memory that plans in `again` have, or could have replaced.

    Args:
        sizes: Number of rows of each plan, the oldest first.
        again: Numbers of the plans that may have a source or a sample of an earlier plan, such as retries.
        read: Returns STANDING_COLUMNS of a plan by its number.
    """
    if not again:
        return Standing(sum(sizes), {})
    samples: set[str] = set()
    names: set[str] = set()
    for number in again:
        plan = read(number)
        samples.update(plan["sample_id"].to_pylist())
        names.update(planned_names(plan))
    some_samples, some_names = pa.array(list(samples), pa.string()), pa.array(list(names), pa.string())
    shards: dict[str, str] = {}
    unread: dict[str, str] = {}
    seen: dict[str, str] = {}
    left = sum(sizes)
    for number in range(len(sizes)):
        plan = read(number)
        rows = plan.filter(pc.or_(pc.is_in(plan["sample_id"], some_samples), pc.is_in(keys(plan), some_names)))
        _take_up(rows, shards, unread)
        seen.update(dict.fromkeys(rows["sample_id"].to_pylist(), ""))
        left -= rows.num_rows
    return Standing(left + len(shards), seen | shards)


def _take_up(plan: pa.Table, shards: dict[str, str], unread: dict[str, str]) -> None:
    """Lets rows of a plan take the place of what earlier plans have.

    A source whose header could not be read is planned as one sample until a later plan reads it; if it is a tar, its
    new members take its place.

    Args:
        shards: Shard of each sample.
        unread: Sample of each source that was not read, by its key.
    """
    columns = ("source", "url", "sample_id", "shard", "offset", "planned_seconds")
    rows = list(zip(keys(plan).to_pylist(), *(plan[name].to_pylist() for name in columns), strict=True))
    read = {key for key, *_ in rows}
    read |= {url for key, source, url, sample, *_ in rows if key == source and sample not in shards}
    for source in read & unread.keys():
        shards.pop(unread.pop(source), None)
    for key, _, _, sample, shard, offset, seconds in rows:
        shards[sample] = shard
        if seconds is None and offset is None:
            unread[key] = sample
