"""Requests to S3 by operation, and the bytes of their bodies, added up over the processes of a run.

Each process counts its own. Rows that an actor sends take along what it has counted since it last sent some; whoever
receives them adds that to its own. So all of it arrives at the driver, on the way that results come.
"""

import json
import threading
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

RECEIVED, SENT = "bytes_received", "bytes_sent"
"""Names under which bytes are counted; all other names are operations of S3, such as `GetObject`."""


class Traffic:
    """Counts of requests and bytes. Any thread may add and take."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds counts."""
        with self._lock:
            self._counts.update(counts)

    @property
    def counts(self) -> dict[str, int]:
        """Counts so far."""
        with self._lock:
            return dict(self._counts)

    def take(self) -> dict[str, int]:
        """Returns the counts and begins again at none."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)


S3_TRAFFIC = Traffic()
"""Requests of this process, and those that others sent to it."""

_COLUMN = "s3_traffic"


def with_traffic(rows: pa.Table) -> pa.Table:
    """Rows that take along what this process has counted, in a column that has it in the first row."""
    taken = [json.dumps(S3_TRAFFIC.take())] if rows.num_rows else []
    return rows.append_column(_COLUMN, pa.array([*taken, *[None] * (rows.num_rows - 1)], pa.string()))


def without_traffic(rows: pa.Table) -> pa.Table:
    """Rows without what they took along, which is added to what this process has counted."""
    for taken in rows[_COLUMN].drop_null().to_pylist():
        S3_TRAFFIC.add(json.loads(taken))
    return rows.drop_columns([_COLUMN])


def described(counts: Mapping[str, int]) -> str:
    """Line for people, such as `GetObject 12, PutObject 3; 1.5 MB received, 0.2 MB sent`; empty without a request."""
    operations = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts) if name not in (RECEIVED, SENT))
    received, sent = (counts.get(name, 0) / 1e6 for name in (RECEIVED, SENT))
    return f"{operations}; {received:,.1f} MB received, {sent:,.1f} MB sent" if operations else ""
