"""Rejects of a run by error type: counted one by one, since a large run has too many to be held."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from . import schema
from .rows import Reject, rejects_to

REJECTS_AT_A_TIME = 10_000
"""Rejects of a row group."""


@dataclass(frozen=True, kw_only=True)
class RejectFacts:
    """Rejected samples of one error type.

    Attributes:
        error_type: Name of the error.
        count: Number of samples.
        source: Source of the first of them.
        message: Message of the first of them.
    """

    error_type: str
    count: int
    source: str
    message: str


@dataclass
class RejectTypes:
    """Counts rejects by error type, and keeps the first of each.

    Attributes:
        counts: Number of rejects of each type.
        first: First reject of each type.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, Reject] = field(default_factory=dict)

    def add(self, reject: Reject) -> None:
        """Counts a reject."""
        self.counts[reject.error_type] += 1
        self.first.setdefault(reject.error_type, reject)

    @property
    def facts(self) -> tuple[RejectFacts, ...]:
        """The types, the most frequent first."""
        return tuple(
            RejectFacts(error_type=name, count=count, source=self.first[name].source, message=self.first[name].message)
            for name, count in self.counts.most_common()
        )


def write_rejects(file: Path, rejects: Iterable[Reject]) -> None:
    """Writes the table `rejects.parquet`, some rows at a time."""
    coming = iter(rejects)
    with pq.ParquetWriter(file, schema.versioned(schema.REJECTS, "rejects")) as writer:
        while some := list(islice(coming, REJECTS_AT_A_TIME)):
            writer.write_table(rejects_to(some))
