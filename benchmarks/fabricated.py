"""Runs of fabricated samples, and the steps of a run that the driver takes over them."""

import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.common import return_memory
from pipelines.common import WorkerSettings
from pipelines.decompose import DecomposeRequest, Decomposition
from pipelines.feeding import waiting_shards
from pipelines.planning import Planner
from pipelines.run import finish_run, list_inputs, new_work, waiting_work
from videolavit.progress import ignore_progress
from videolavit.records import schema
from videolavit.records.inspection import inspect
from videolavit.records.kinds import KINDS
from videolavit.records.rows import Reject, extra_fields, plan_rows_to, sources_from
from videolavit.records.shards import CLIP_SHARDS, Ledger, ShardSummary, footer_metadata
from videolavit.records.storage import Folder, StorageSettings

COST = 2.0
"""Core-seconds of a sample, which makes shards of the usual 78 samples."""

REJECTED_EVERY = 100
"""Samples of which one is rejected."""


class FabricatedPlanner(Planner):
    """Plans every source as one sample of 10 seconds, without looking at it."""

    def read(self, sources: pa.Table) -> pa.Table:
        rows = [KINDS[source.kind].plan_unread(source, self.settings) for source in sources_from(sources)]
        known = [replace(row, planned_seconds=10.0, cost=COST, size_bytes=1e6) for row in rows]
        return plan_rows_to(known, extra_fields(sources.schema))


def _planner(folder: str) -> tuple[Decomposition, Planner]:
    pipeline = Decomposition.of(DecomposeRequest())
    settings, storage = WorkerSettings(), StorageSettings()
    ledger = Ledger(Folder(f"{folder}/run", storage))
    return pipeline, FabricatedPlanner(ledger, pipeline.assign, pipeline.settings, settings, storage, ignore_progress)


def _list(folder: str) -> None:
    rows = sum(batch.num_rows for batch in list_inputs(*_inputs(folder)))
    assert rows


def _inputs(folder: str) -> tuple[Decomposition, list[str], StorageSettings]:
    return Decomposition.of(DecomposeRequest()), [f"{folder}/manifest.parquet"], StorageSettings()


def _plan(folder: str) -> None:
    _, planner = _planner(folder)
    planner.commit(list_inputs(*_inputs(folder)))


def _start(folder: str) -> None:
    """Names of the shards that are handed to workers."""
    _, planner = _planner(folder)
    assert planner.ledger is not None
    assert waiting_shards(planner.ledger).count


def _show(folder: str) -> None:
    """`--plan` of a run that is half done, with the same input."""
    pipeline, planner = _planner(folder)
    assert planner.ledger is not None
    assert not new_work(pipeline, planner, list_inputs(*_inputs(folder))).samples
    assert waiting_work(pipeline, planner.ledger).samples


def _resume(folder: str) -> None:
    """Start of the same command on a run that is half done, until work would begin."""
    _plan(folder)
    _start(folder)


def _finish(folder: str) -> None:
    pipeline, planner = _planner(folder)
    assert planner.ledger is not None
    finish_run(pipeline, planner.ledger, pipeline.identity(), 0.0)


def _inspect(folder: str) -> None:
    assert ("complete", "yes") in inspect(f"{folder}/run").facts


STEPS: dict[str, Callable[[str], None]] = {
    "list": _list,
    "plan": _plan,
    "start": _start,
    "show the plan": _show,
    "resume": _resume,
    "finish": _finish,
    "finish again": _finish,
    "inspect": _inspect,
}


def run_step(name: str, folder: str) -> dict[str, float]:
    """CPU seconds of a step, its children's included, and megabytes by which it raised this process."""
    return_memory()  # commands do so
    before = psutil.Process().memory_info().rss
    started = _cpu_seconds()
    STEPS[name](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": _cpu_seconds() - started, "megabytes": max(peak - before, 0) / 1e6}


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usages)


def write_manifest(file: Path, size: int) -> None:
    fields = pa.schema([("video", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(file, fields) as writer:
        for start in range(0, size, 100_000):
            numbers = range(start, min(start + 100_000, size))
            names = [f"videos/{number // 1000:06d}/{number:010d}.mp4" for number in numbers]
            texts = [f"a caption of video {number}, which says what can be seen in it" for number in numbers]
            writer.write_table(pa.table({"video": names, "text": texts}, fields))


def fabricate_shards(run: Path, every: int) -> None:
    """Commits planned shards, one of so many, without rows."""
    (run / CLIP_SHARDS.folder).mkdir(exist_ok=True)
    for number, (name, sources) in enumerate(_planned_shards(run)):
        file = run / CLIP_SHARDS.folder / name
        if number % every == 0 and not file.exists():
            summary = ShardSummary(name)
            for sample, source in sources:
                if int(sample[:8], 16) % REJECTED_EVERY == 0:
                    summary.rejects.append(_reject(sample, source))
            made = len(sources) - len(summary.rejects)
            summary.counts.update(samples=made, clips=3 * made, frames=60 * made, video_seconds=10.0 * made)
            fields = schema.versioned(schema.CLIPS, CLIP_SHARDS.folder, footer_metadata(summary))
            pq.write_table(fields.empty_table(), file)


def _planned_shards(run: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for file in sorted((run / "plan").iterdir()):
        plan = pq.read_table(file, columns=["shard", "sample_id", "source"])
        shards: dict[str, list[tuple[str, str]]] = {}
        for name, *sample in zip(*(column.to_pylist() for column in plan.columns), strict=True):
            shards.setdefault(name, []).append((sample[0], sample[1]))
        yield from shards.items()


def _reject(sample: str, source: str) -> Reject:
    return Reject(
        sample_id=sample,
        source=source,
        start_seconds=0.0,
        stage="decompose",
        error_type="CorruptVideo",
        message="no frame could be decoded",
        attempts=1,
        seconds=0.1,
    )
