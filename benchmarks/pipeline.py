"""Throughput of the pipeline through Ray Data against a bare pool of processes."""

import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa

from videolavit.records.kinds import read_clips, shard_by
from videolavit.records.plan import assign_clip_shards
from videolavit.records.rows import PlanRow, plan_rows_from, plan_rows_to
from videolavit.records.samples import SampleSettings
from videolavit.records.storage import StorageSettings

from .shared import WORKERS, console, fresh_folder, local_ray, planned, process_tree, result_table, through_ray, verdict

PIPELINE_GOAL = 0.95
"""Share of the bare loop's throughput."""

ROLES = {
    "kinds:read_clips": "decoding",
    "multiprocessing.spawn": "decoding",
    "ray::": "Ray workers",
    "ray": "Ray itself",
}
"""Roles of the processes of a run, by the first of these words in their command line."""


@dataclass(frozen=True)
class Run:
    """Times of a run's results in seconds since its start, the segments each brought, and what CPUs did meanwhile."""

    results: list[float]
    cpu: dict[str, float]
    others: float

    @property
    def steady(self) -> float:
        """Segments a second between the first result and the last: all workers have started by then."""
        return (len(self.results) - 1) / (self.results[-1] - self.results[0])

    @property
    def whole(self) -> float:
        """Segments a second from the start, the start of the workers included."""
        return len(self.results) / self.results[-1]

    def numbers(self) -> dict[str, Any]:
        return {
            "segments": len(self.results),
            "first_result": self.results[0],
            "last_result": self.results[-1],
            "steady_per_second": self.steady,
            "whole_per_second": self.whole,
            "cpu_seconds": self.cpu,
            "cpu_seconds_of_others": self.others,
        }


def measure_pipeline(videos: Sequence[Path], output: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Wall-clock throughput of the pipeline against a bare pool of processes over the same segments.

    The pool hands each worker one segment at a time, the longest first, and drops the results. The pipeline does
    what it always does: isolated decoding, shards written and committed, progress records. Ray itself is started
    before its clock starts; its actors, like the pool's processes, after.
    """
    settings, storage = SampleSettings(), StorageSettings()
    once = plan_rows_from(planned(videos, settings, storage))
    started = time.monotonic()
    for row in once:
        read_clips(row, settings, storage)
    copies = max(round(1.1 * seconds * WORKERS / (time.monotonic() - started)), 1)
    again = plan_rows_to(row for index in range(copies) for row in _renamed(once, index))
    plan = assign_clip_shards(again, 0, shard_by)
    console.print(f"pipeline: {plan.num_rows} segments, {len(plan['shard'].unique())} shards", style="dim")
    kinds: dict[str, Callable[[], Run]] = {
        "pool": lambda: _run_pool(plan_rows_from(plan), settings, storage),
        "ray": lambda: _run_ray(plan, output, settings),
    }
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in list(kinds)[:: 1 if turn % 2 == 0 else -1]:
            runs[kind].append(kinds[kind]())
            console.print(f"pipeline: {kind} took {runs[kind][-1].results[-1]:.0f} s", style="dim")
    steady = {kind: median(run.steady for run in runs[kind]) for kind in kinds}
    whole = {kind: median(run.whole for run in runs[kind]) for kind in kinds}
    spent = {kind: median(sum(run.cpu.values()) for run in runs[kind]) for kind in kinds}
    result = {
        "workers": WORKERS,
        "cpu_share": spent["pool"] / spent["ray"],
        "steady_share": steady["ray"] / steady["pool"],
        "whole_share": whole["ray"] / whole["pool"],
        "runs": {kind: [run.numbers() for run in runs[kind]] for kind in kinds},
    }
    _show_pipeline(runs, result)
    return result


def _renamed(rows: list[PlanRow], index: int) -> Iterator[PlanRow]:
    """The rows again as other samples of the same files, which makes a small corpus a long one."""
    for row in rows:
        yield replace(row, sample_id=f"{index:04d}-{row.sample_id}", source=f"{index:04d}/{row.source}")


def _run_pool(rows: list[PlanRow], settings: SampleSettings, storage: StorageSettings) -> Run:
    """The bare loop: two processes, one segment at a time, results received and dropped."""
    work = functools.partial(read_clips, settings=settings, storage=storage)
    ordered = sorted(rows, key=lambda row: -row.cost)
    clock = _Clock()
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        for _ in pool.imap_unordered(work, ordered, chunksize=1):
            clock.result()
        return clock.run()


def _run_ray(plan: pa.Table, output: Path, settings: SampleSettings) -> Run:
    with fresh_folder(output, "pipeline") as folder, local_ray():
        clock = _Clock()
        for record in through_ray(plan, folder, settings, WORKERS):
            if record["rejects"]:
                raise RuntimeError("a segment was rejected; `videolavit decompose` on the same videos says why")
            clock.result(int(record["samples"]))
        return clock.run()


class _Clock:
    """Times of results, and CPU seconds by role of process while it ran."""

    def __init__(self) -> None:
        self._results: list[float] = []
        self._busy, self._before, self._looked = _machine_busy(), _cpu_by_process(), 0.0
        self._spent: dict[tuple[str, int], float] = {}
        self._started = time.monotonic()

    def result(self, segments: int = 1) -> None:
        self._results += [self._now()] * segments
        self._look()

    def run(self) -> Run:
        """The end: what came last, the commit of the last shard, counts as part of the last result."""
        self._results[-1] = self._now()
        cpu: dict[str, float] = {}
        for key, seconds in self._spent.items():
            cpu[key[0]] = cpu.get(key[0], 0.0) + seconds - self._before.get(key, 0.0)
        return Run(self._results, cpu, _machine_busy() - self._busy - sum(cpu.values()))

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _look(self) -> None:
        """Reads CPU times now and then: a pool that has done its work is gone before one could ask it."""
        if self._now() - self._looked > 1:
            self._looked = self._now()
            self._spent |= _cpu_by_process()


def _machine_busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)  # guests' time is part of user time


def _cpu_by_process() -> dict[tuple[str, int], float]:
    """CPU seconds of this process and those below it, by (role, pid)."""
    seconds = {}
    for process in [psutil.Process(), *process_tree()]:
        with suppress(psutil.Error):  # the process may have ended
            times = process.cpu_times()
            seconds[_role(process), process.pid] = times.user + times.system
    return seconds


def _role(process: psutil.Process) -> str:
    """Role of a process."""
    if process.pid == os.getpid():
        return "driver"
    command = " ".join(process.cmdline())
    return next((role for word, role in ROLES.items() if word in command), "rest")


def _show_pipeline(runs: dict[str, list[Run]], result: dict[str, Any]) -> None:
    roles = (*dict.fromkeys(ROLES.values()), "driver", "rest")
    columns = ("", "segments", "first s", "last s", "steady /s", "whole /s", *roles, "others")
    table = result_table(f"Pipeline against a bare pool, {WORKERS} workers; CPU seconds by role", *columns)
    for kind, of_kind in runs.items():
        for run in of_kind:
            speeds = (f"{run.results[0]:.1f}", f"{run.results[-1]:.1f}", f"{run.steady:.3f}", f"{run.whole:.3f}")
            spent = [f"{run.cpu.get(role, 0.0):.1f}" for role in roles]
            table.add_row(kind, str(len(run.results)), *speeds, *spent, f"{run.others:.1f}")
    console.print(table)
    console.print(f"share with the start of the workers: {result['whole_share']:.3f}")
    console.print(f"share by CPU seconds, which others on the machine disturb less: {result['cpu_share']:.3f}")
    verdict("share from first to last result", result["steady_share"], PIPELINE_GOAL, at_least=True)
