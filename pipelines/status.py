"""State of a run, from the files of its folder: for another terminal, and without Ray."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from videolavit.records.inspection import NotARun
from videolavit.records.shards import CLIP_SHARDS, RUN_FILE, TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.traffic import described
from videolavit.records.usage import Facts

from .live import LIVE_FILE, SILENT_AFTER, LiveRun

LATE_AFTER = {"data": 30.0, "training": 600.0}
"""Seconds without a new state after which a run does not count as running: it writes one every 5 s, and a training one
with each line of its metrics."""

_METRICS = "metrics.jsonl"  # `training.metrics` has it too, and loads torch


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """State of a run.

    Attributes:
        path: Path or URL of the run.
        kind: `clips`, `tokens` or `training`.
        state: Line for people: complete, running, or what to do.
        is_running: True if the run has shown itself lately.
        live: State of the last start; None where there was none.
        age: Seconds since that state; 0 without one.
        shards, planned_shards: Committed and planned shards of a data run.
        rejects: Rejects by error type: of this start while it runs, of the whole run after it.
        s3: Requests to S3 by operation, and bytes, of all starts of a data run.
        metrics: Last value of each metric of a training.
    """

    path: str
    kind: str
    state: str
    is_running: bool
    live: LiveRun | None = None
    age: float = 0.0
    shards: int = 0
    planned_shards: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    s3: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the rate of the last minute, in seconds; None where it cannot be told."""
        live = self.live
        if live is None or not self.is_running or not live.rate or not live.total:
            return None
        return max(live.total - live.done, 0.0) / live.rate

    @property
    def stuck(self) -> list[Mapping[str, Any]]:
        """Shards in work of which nothing is heard, the most silent first."""
        working = self.live.working if self.live is not None and self.is_running else []
        return [one for one in working if one["silent"] + self.age > SILENT_AFTER]

    @property
    def failing_nodes(self) -> dict[str, int]:
        """Nodes on which shards failed, and how many."""
        nodes = self.live.nodes if self.live is not None else {}
        return {node: counts["failed"] for node, counts in nodes.items() if counts["failed"]}

    @property
    def facts(self) -> Facts:
        """Names and values, as text."""
        facts = [("state", self.state)]
        unit = "steps" if self.kind == "training" else "samples"
        if self.planned_shards:
            facts.append(("shards", f"{self.shards:,} of {self.planned_shards:,}"))
        if self.live is not None:
            facts += [
                (unit, f"{self.live.done:,.0f} of {self.live.total:,.0f} in this start"),
                ("rate", f"{self.live.rate:.3g} {unit}/s"),
                ("now", self.live.message),
            ]
            left = self.seconds_left
            facts += [] if left is None else [("time left", _duration(left))]
            facts.append(("driver", f"process {self.live.pid} on {self.live.host}, heard {self.age:.0f} s ago"))
        if self.s3:
            facts.append(("S3, all starts", described(self.s3)))
        return facts + [(name, f"{value:.4g}") for name, value in self.metrics.items()]


def run_status(path: str, storage: StorageSettings | None = None) -> RunStatus:
    """Reads the state of a data run or a training.

    Args:
        path: Folder or URL of the run.

    Raises:
        NotARun: the folder holds neither.
        StorageError: the location cannot be used.
    """
    folder = Folder(path, storage or StorageSettings())
    found, live = folder.read(RUN_FILE), _live(folder)
    age = max(time.time() - live.updated, 0.0) if live is not None else 0.0
    if found is not None:
        return _data_status(path, folder, json.loads(found), live, age)
    metrics = folder.read(_METRICS)
    if metrics is None and live is None:
        raise NotARun(f"{path} is no run: it has neither {RUN_FILE} nor {_METRICS}")
    is_running, state = _state(live, age, LATE_AFTER["training"])
    if live is not None and live.ended and live.total and live.done >= live.total:
        state = "complete"
    last = {} if metrics is None else _last_metrics(metrics)
    return RunStatus(path=path, kind="training", state=state, is_running=is_running, live=live, age=age, metrics=last)


def _data_status(path: str, folder: Folder, run: dict[str, Any], live: LiveRun | None, age: float) -> RunStatus:
    kind = run["identity"].get("kind", CLIP_SHARDS.folder)
    ledger = Ledger(folder, TOKEN_SHARDS if kind == TOKEN_SHARDS.folder else CLIP_SHARDS)
    planned = sum(len(plan["shard"].unique()) for plan in ledger.planned(["shard"]))
    is_running, state = _state(live, age, LATE_AFTER["data"])
    if run["complete"] and not is_running:
        state = "complete"
    counted = run.get("counts", {}).get("rejects_by_type", {})  # a run has counts once a start of it has ended
    rejects = live.rejects if live is not None and not run["complete"] else counted
    return RunStatus(
        path=path,
        kind=kind,
        state=state,
        is_running=is_running,
        live=live,
        age=age,
        shards=len(ledger.committed()),
        planned_shards=planned,
        rejects=rejects,
        s3=Counter(run.get("s3", {})) | Counter(live.s3 if live is not None else {}),
    )


def _live(folder: Folder) -> LiveRun | None:
    found = folder.read(LIVE_FILE)
    try:
        return None if found is None else LiveRun.from_json(found)
    except (ValueError, TypeError):  # another version wrote it
        return None


def _state(live: LiveRun | None, age: float, limit: float) -> tuple[bool, str]:
    """True if a run has shown itself lately, and a line that says so or not."""
    if live is None:
        return False, "no work has begun: it plans, or has ended before"
    if live.ended:
        return False, "at rest: it plans, waits for its storage, or has ended; the same command continues"
    if age > limit:
        return False, f"nothing was heard of it for {_duration(age)}: it was killed or is cut off; start it again"
    return True, "running"


def _last_metrics(lines: bytes) -> dict[str, float]:
    """Last value of each metric. A line that is being written is left out."""
    found: dict[str, float] = {}
    for line in lines.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            found |= json.loads(line)
    return found


def _duration(seconds: float) -> str:
    """Length of time for people, such as `3 h 20 min`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
