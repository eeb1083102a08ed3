"""Helpers of the measurements: plans, a Ray of their own, folders, tables."""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from videolavit.files import write_beside
from videolavit.media import write_mp4
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import PlanSettings, plan_source, shard_by
from videolavit.records.plan import assign_clip_shards
from videolavit.records.rows import Source
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.synth import SynthSettings, draw_scene, render

WORKERS = 2
TIME_LIMIT = 1500.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def in_own_process(function: Callable[[*Arguments], Result], *arguments: *Arguments, limit: float) -> Result:
    """Calls a module-level function in a fresh process, outside of the sandbox, and returns its result.

    Args:
        limit: Time after which it is given up, in seconds.
    """
    module = sys.modules[function.__module__]
    name = module.__spec__.name if module.__spec__ is not None else module.__name__  # that of `python -m`, too
    code = (
        f"import pickle, sys; from {name} import {function.__name__} as function; "
        "result = function(*pickle.load(sys.stdin.buffer)); sys.stdout.buffer.write(pickle.dumps(result))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, input=pickle.dumps(arguments), stdout=subprocess.PIPE, timeout=limit, check=True)
    result: Result = pickle.loads(done.stdout)  # noqa: S301, our own
    return result


def render_once(video: Path, settings: SynthSettings, index: int) -> None:
    if not video.exists():
        with write_beside(video) as (unfinished,):
            write_mp4(render(draw_scene(settings, 1, index), settings), unfinished, settings.fps)


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of its own with two cores, as quiet as the jobs' own."""
    import ray  # imported here, because the pool's processes import this module too and would load Ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray's workers step back for other processes, which on a busy machine would be all that is measured.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def fresh_folder(output: Path, name: str) -> Iterator[str]:
    """A folder for a run's shards, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=output) as folder:
        yield folder


def planned(videos: Iterable[Path], settings: SampleSettings, storage: StorageSettings) -> pa.Table:
    """Plan of the videos, with shards, the longest work first."""
    plan = PlanSettings(sample=settings, inputs=InputSettings(modality="video"), makes_clips=True)
    sources = [Source(source=str(video), url=str(video), kind="video") for video in videos]
    rows = pa.concat_tables([plan_source(source, plan, storage, []) for source in sources])
    return assign_clip_shards(rows, 0, shard_by)


def through_ray(plan: pa.Table, folder: str, settings: SampleSettings, workers: int) -> Iterator[dict[str, Any]]:
    """Makes the shards of a plan as `videolavit decompose` does; yields its records of counts."""
    from pipelines.common import WorkerSettings
    from pipelines.decompose import DecomposeRequest, Decomposition
    from pipelines.feeding import waiting_shards

    ledger = Ledger(Folder(folder, StorageSettings()))
    ledger.add_plan(0, plan)
    pool = WorkerSettings(workers=workers, time_limit=TIME_LIMIT)
    pipeline = Decomposition.of(DecomposeRequest(sample=settings, workers=pool))
    return pipeline.work(waiting_shards(ledger), ledger.folder)


def process_tree() -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process().children(recursive=True)
    return children


def result_table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def verdict(what: str, value: float, goal: float, *, at_least: bool) -> None:
    met = value >= goal if at_least else value <= goal
    sign = "at least" if at_least else "at most"
    console.print(
        f"{what}: {value:.3g}, goal {sign} {goal:g}: [{'green' if met else 'red'}]{'met' if met else 'missed'}[/]"
    )
