"""State of a run while it runs, in a file of its folder, for whoever asks from elsewhere."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from videolavit.progress import OnProgress, Progress

LIVE_FILE = "live.json"
LIVE_EVERY = 5.0
"""Seconds between two states in the file."""

SILENT_AFTER = 60.0
"""Seconds without a record after which a shard counts as stuck: six signs of life did not come."""


@dataclass(kw_only=True)
class LiveRun:
    """State of a start.

    Args:
        name: Pipeline, or component that is trained.
        started: Time of the start, in seconds since 1970.
        updated: Time of this state, in seconds since 1970.
        ended: True after the end.
        done: Units that are done in this start: samples, or the step of a training.
        total: Units in all.
        rate: Units a second in the last minute.
        message: Line for people.
        rejects: Rejects of this start by error type.
        nodes: Node -> shards that it has made, and that failed there.
        working: Shards in work: `shard`, `node`, `seconds` in work, `silent` seconds.
        failures: Reasons of the last failed shards.
        s3: Requests to S3 by operation, and bytes, of all starts of a data run.
        host, pid: Process that writes this.
    """

    name: str
    started: float
    updated: float = 0.0
    ended: bool = False
    done: float = 0.0
    total: float = 0.0
    rate: float = 0.0
    message: str = ""
    rejects: Mapping[str, int] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    working: list[Mapping[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    s3: Mapping[str, int] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "LiveRun":
        return cls(**json.loads(text))


class LiveFile:
    """Writes the state of a run now and then. A storage that fails does not end the run for it.

    Args:
        write: Replaces the content of the file.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._written = float("-inf")

    def update(self, state: Callable[[], LiveRun], now: bool = False) -> None:
        """Writes the state if it is time, or `now`."""
        if not now and time.monotonic() - self._written < LIVE_EVERY:
            return
        self._written = time.monotonic()
        live = state()
        live.updated = time.time()
        with contextlib.suppress(OSError, ValueError):  # a full disk, or a storage that is away: the run will say so
            self._write(live.to_json())


@contextlib.contextmanager
def live_progress(name: str, write: Callable[[bytes], None], on_progress: OnProgress) -> Iterator[OnProgress]:
    """Yields a callback that hands progress on, and keeps the last of it in the file of a run, once it has begun.

    Args:
        name: Name of what runs.
        write: Replaces the content of the file.
    """
    live, file = LiveRun(name=name, started=time.time()), LiveFile(write)
    begin: tuple[float, float] | None = None  # time and units of the first report

    def note(progress: Progress) -> None:
        nonlocal begin
        if progress.total:
            begin = begin or (time.monotonic(), progress.done)
            passed = time.monotonic() - begin[0]
            live.done, live.total, live.message = progress.done, progress.total, progress.message or live.message
            live.rate = (progress.done - begin[1]) / passed if passed else 0.0
        else:  # such as a worker of which nothing is heard
            live.message = progress.message or live.message
        if begin is not None:
            file.update(lambda: live)
        on_progress(progress)

    try:
        yield note
    finally:
        live.ended = True
        if begin is not None:
            file.update(lambda: live, now=True)
