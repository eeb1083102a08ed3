"""Shards in work: who makes them, since when, and which of them are silent."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .live import SILENT_AFTER
from .shard_records import ShardRecord, is_last

UNBEGUN_LIMIT = 1800.0
"""Longest time that a run waits for a first worker, in seconds; a cluster may have to grow."""

RATE_SECONDS = 60.0
"""Time over which the rate is taken, in seconds."""

LAST_FAILURES = 5
"""Reasons of failed shards that are kept."""


@dataclass
class WorkingShard:
    """A shard that is being made.

    Args:
        shard: Name of the shard.
        node: Node that works on it.
        began: Time of its first record, in seconds.
        heard: Time of its last record, in seconds.
    """

    shard: str
    node: str
    began: float
    heard: float


@dataclass
class NodeShards:
    """Shards that a node has committed, and that failed there."""

    made: int = 0
    failed: int = 0


@dataclass
class ShardWatch:
    """State of the shards of a start, from their records.

    Args:
        total: Samples of the shards.
        clock: Returns the time, in seconds.
    """

    total: float
    clock: Callable[[], float]
    counts: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    nodes: dict[str, NodeShards] = field(default_factory=dict)
    working: dict[str, WorkingShard] = field(default_factory=dict)
    failures: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_FAILURES))

    def __post_init__(self) -> None:
        self.started = self.heard = self.clock()
        self._named: set[str] = set()
        self._pace = deque([(self.started, 0.0)])

    def note(self, record: ShardRecord) -> None:
        """Takes in a record."""
        now, name, node = self.clock(), record["shard"], record["node"]
        self.heard = now
        self._named.discard(name)
        self.counts.update(record["counts"])
        self.rejects.update(record["rejected"])
        if is_last(record):
            self.working.pop(name, None)
            shards = self.nodes.setdefault(node, NodeShards())
            if record["error"] is None:
                shards.made += 1
            else:
                shards.failed += 1
                self.failures.append(f"{record['error']} (on {node})")
        else:
            began = self.working[name].began if name in self.working else now
            self.working[name] = WorkingShard(name, node, began, now)
        self._pace.append((now, self.counts["samples"]))
        while len(self._pace) > 2 and self._pace[1][0] < now - RATE_SECONDS:
            self._pace.popleft()

    @property
    def rate(self) -> float:
        """Samples a second in the last minute."""
        (begin, before) = self._pace[0]
        return (self.counts["samples"] - before) / max(self.clock() - begin, 1e-9)

    @property
    def by_silence(self) -> list[WorkingShard]:
        """Shards in work, the most silent first."""
        return sorted(self.working.values(), key=lambda one: one.heard)

    def silent(self) -> list[WorkingShard]:
        """Shards in work without a record for long, the most silent first."""
        limit = self.clock() - SILENT_AFTER
        return [one for one in self.by_silence if one.heard < limit]

    def newly_silent(self) -> list[WorkingShard]:
        """Silent shards that this call names for the first time since they were heard."""
        new = [one for one in self.silent() if one.shard not in self._named]
        self._named |= {one.shard for one in new}
        return new

    @property
    def has_begun(self) -> bool:
        """True if a worker has reported anything."""
        return self.heard > self.started or bool(self.working)

    @property
    def stands_still(self) -> bool:
        """True if nothing is heard of any shard, although work had begun."""
        return self.has_begun and self.clock() - self.heard > SILENT_AFTER

    @property
    def never_begins(self) -> bool:
        """True if no worker has begun for very long."""
        return not self.has_begun and self.clock() - self.started > UNBEGUN_LIMIT

    def silence(self) -> str:
        """Names the shards in work and their nodes, for people."""
        shards = [f"{one.shard} on {one.node}" for one in self.by_silence]
        more = f" and {len(shards) - 3} more" if len(shards) > 3 else ""
        return ", ".join(shards[:3]) + more if shards else "all workers"
