"""State of a run while it runs, in a file of its folder, for whoever asks from elsewhere."""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

LIVE_FILE = "live.json"
LIVE_EVERY = 5.0
"""Seconds between two states in the file."""


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
        try:
            self._write(live.to_json())
        except (OSError, ValueError):  # a full disk, or a storage that is away: the run itself will say so
            self._written += LIVE_EVERY
