"""Sums over the shards of a run, which are looked at one by one."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .rejects import RejectTypes
from .rows import Reject
from .shards import Ledger, ShardSummary
from .standing import Standing


@dataclass
class RunTotals:
    """Adds up the shards of a run.

    Attributes:
        standing: Samples of all plans.
        shards: Number of shards.
        counts: Counts of their rows.
        rejects: Rejects that stand, by error type.
    """

    standing: Standing
    shards: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    rejects: RejectTypes = field(default_factory=RejectTypes)

    def add(self, summaries: Iterable[ShardSummary]) -> Iterator[Reject]:
        """Adds shards, and yields those of their rejects that stand."""
        for summary in summaries:
            self.shards += 1
            self.counts.update(summary.counts)
            for reject in summary.standing_rejects(self.standing):
                self.rejects.add(reject)
                yield reject


@dataclass
class DifferingShards:
    """Finds shards that account for another number of samples than the plan gives them.

    Attributes:
        count: Number of those shards.
        first: Name of the first of them.
    """

    ledger: Ledger
    count: int = 0
    first: str = ""
    _generation: str = ""
    _sizes: dict[str, int] = field(default_factory=dict)

    def among(self, summaries: Iterable[ShardSummary]) -> Iterator[ShardSummary]:
        """Hands on the shards of a run, the oldest plan first, and looks at each."""
        plans = self.ledger.plans_by_generation()
        for summary in summaries:
            if summary.generation != self._generation:
                self._generation = summary.generation
                name = plans.get(summary.generation)
                self._sizes = self.ledger.shard_sizes(name) if name else {}
            if summary.counts["samples"] + len(summary.rejects) != self._sizes.get(summary.name, 0):
                self.count += 1
                self.first = self.first or summary.name
            yield summary
