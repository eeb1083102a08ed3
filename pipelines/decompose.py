"""Videos to clip shards.

    sources -> plan (1:N, headers only) -> shards fixed in OUT/plan -> decompose (1 shard : 1 file) -> OUT/clips

The plan is committed before any work starts, and a shard is committed in one step under a name that the plan fixed.
Whatever is killed, and however often Ray repeats a task, a shard is therefore made once, with the same rows. Ray Data's
own checkpointing is not used: it loses rows under fan-out and repeats rejected ones.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from videolavit.progress import OnProgress, ignore_progress
from videolavit.records import schema
from videolavit.records.identity import made_by, run_identity
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import Kind, PlanSettings, read_clips, shard_by
from videolavit.records.plan import assign_clip_shards
from videolavit.records.rejects import RejectFacts
from videolavit.records.report import write_clip_report
from videolavit.records.rows import PlanRow, extra_fields, plan_rows_from, video_sample_to
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import CLIP_SHARDS, RUN_FILE, ShardWriter
from videolavit.records.source_files import isolated
from videolavit.records.storage import Folder, StorageSettings, confined
from videolavit.records.traffic import S3_TRAFFIC

from .common import (
    Rejected,
    SampleWork,
    WorkerSettings,
    actor_pool,
)
from .faults import FaultWitness, OutputFails, StorageFails, check_output, output_faults
from .feeding import PlanUnreadable, WaitingShards, feed, planned_rows
from .run import Pipeline, PlanSummary, RunSettings, RunSummary, list_inputs, plan_run, start_run
from .shard_records import ShardTally, WorkThread, node_address

__all__ = ["DecomposeRequest", "Decomposition", "decompose", "plan_decomposition"]


@dataclass(frozen=True, kw_only=True)
class DecomposeRequest:
    """A run of decomposition.

    Args:
        inputs: Folders, globs, manifests, tars and videos, on any fsspec location.
        output: Folder or `s3://` prefix of the run; None only to plan.
        text_column: Caption column of manifests; by default `text`, or else `caption`.
    """

    inputs: Sequence[str] = ()
    output: str | None = None
    text_column: str | None = None
    sample: SampleSettings = default(default_factory=SampleSettings)
    run: RunSettings = default(default_factory=RunSettings)
    workers: WorkerSettings = default(default_factory=WorkerSettings)
    storage: StorageSettings = default(default_factory=StorageSettings)


def decompose(request: DecomposeRequest, on_progress: OnProgress = ignore_progress) -> RunSummary:
    """Decomposes a corpus of videos into Parquet shards of keyframes and motion vectors.

    The same request continues an interrupted run, and does the new part of a grown input. Uses the Ray that is
    connected; otherwise starts one and stops it again.

    Raises:
        InputError, StorageError, IdentityMismatch: mistakes in the request.
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
        PlanningConflict, PlanningIncomplete: the same request continues.
    """
    if request.output is None:
        raise ValueError("a run needs an output")
    S3_TRAFFIC.take()  # counts of other work before
    pipeline = Decomposition.of(request)
    storage = confined(request.storage, request.inputs)
    listing = list_inputs(pipeline, request.inputs, storage) if request.inputs else None
    return start_run(pipeline, listing, request.output, storage, request.run, on_progress)


def plan_decomposition(request: DecomposeRequest, on_progress: OnProgress = ignore_progress) -> PlanSummary:
    """Computes the work of `decompose` and its cost, and writes nothing. Raises the errors of `decompose`."""
    pipeline = Decomposition.of(request)
    storage = confined(request.storage, request.inputs)
    listing = list_inputs(pipeline, request.inputs, storage)
    return plan_run(pipeline, listing, request.output, storage, request.run, on_progress)


class Decomposition(Pipeline):
    """Videos to clip shards."""

    name = "decompose"
    shards = CLIP_SHARDS
    reserved = frozenset(schema.CLIPS.names)

    @classmethod
    def of(cls, request: DecomposeRequest) -> "Decomposition":
        """The pipeline of a request."""
        inputs = InputSettings(modality="video", text_column=request.text_column)
        return cls(PlanSettings(sample=request.sample, inputs=inputs, makes_clips=True), request.workers)

    def identity(self) -> dict[str, Any]:
        return run_identity(self.settings.sample)

    def takes(self, kind: Kind) -> bool:
        return kind.is_decomposed

    def assign(self, rows: pa.Table, generation: int) -> pa.Table:
        return versioned_plan(assign_clip_shards(rows, generation, shard_by))

    def figures(self, rows: pa.Table) -> dict[str, float]:
        seconds = [value or 0.0 for value in rows["planned_seconds"].to_pylist()]
        clips = sum(-(-int(length * self.settings.sample.fps) // 24) for length in seconds)
        return {"hours": sum(seconds) / 3600, "clips": clips}

    def work(self, shards: WaitingShards, folder: Folder) -> "ray.data.Dataset":
        return feed(shards, folder).map_batches(
            _ClipShardMaker,
            fn_constructor_kwargs={
                "output": folder.url,
                "storage": folder.settings,
                "settings": self.settings.sample,
                "workers": self.workers,
            },
            batch_size=None,
            batch_format="pyarrow",
            **actor_pool(self.workers, shards.count),
        )

    def describe(self, counts: Mapping[str, float], seconds: float) -> str:
        speed = counts["video_seconds"] / seconds
        return f"{counts['clips']:.0f} clips, {counts['rejects']:.0f} rejects, {speed:.1f}x real time"

    def counts(self, totals: Counter[str]) -> dict[str, int]:
        return {"clips": totals["clips"], "frames": totals["frames"]}

    def write_report(self, folder: Folder, run: dict[str, Any], rejects: Sequence[RejectFacts]) -> None:
        write_clip_report(folder, run, rejects)


class _ClipShardMaker:
    """Actor: makes one shard at a time; a child process does the decoding."""

    def __init__(
        self, output: str, storage: StorageSettings, settings: SampleSettings, workers: WorkerSettings
    ) -> None:
        pa.set_memory_pool(pa.system_memory_pool())  # gives back what writing a row took; others keep it
        self._folder = Folder(output, storage)
        self._storage, self._settings = storage, settings
        self._clips = SampleWork(isolated(read_clips, storage), workers, "decompose")
        self._witness = FaultWitness(storage, workers.believe_storage)
        self._node, self._thread = node_address(), WorkThread()
        self._can_write = False

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        name, error = block["shard"][0].as_py(), None
        tally = ShardTally(name, self._node)
        try:
            work = partial(self._make_shard, planned_rows(block), tally)
            made = yield from self._thread.run(work, tally.alive)
            tally.add(**made)
        except (StorageFails, OutputFails, PlanUnreadable) as failure:
            error = f"{name}: {failure}"
        except Exception as failure:
            # The shard stays pending, and the driver can say why. Raising would only lose the reason.
            error = f"{name}: {failure!r}"
        yield tally.block(error)

    def _make_shard(self, plan: pa.Table, tally: ShardTally) -> dict[str, float]:
        """Makes and commits a shard, and returns what to count at its end. Raises StorageFails, OutputFails."""
        if not self._can_write:  # before work that nobody could keep
            check_output(self._folder, RUN_FILE, self._node)
            self._can_write = True
        with ShardWriter(self._folder, tally.shard, extra_fields(plan.schema), CLIP_SHARDS, made_by()) as writer:
            rows = plan_rows_from(plan)
            for row in rows:
                self._make(row, rows, writer, tally)
            started = time.monotonic()
            with output_faults(self._node):
                writer.commit()
            return {"shards": 1, "bytes": writer.size_bytes, "seconds_commit": time.monotonic() - started}

    def _make(self, row: PlanRow, rows: Sequence[PlanRow], writer: ShardWriter, tally: ShardTally) -> None:
        """Adds a sample, or its reject, and counts it. Raises StorageFails."""
        started = time.monotonic()
        try:
            sample = self._clips(row, self._settings, self._storage)
        except Rejected as failure:
            self._witness.check(row, failure.reject.error_type, rows)
            writer.reject(failure.reject)
            tally.reject(failure.reject.error_type)
            tally.add(samples=1, rejects=1, seconds_decode=time.monotonic() - started)
            return
        decoded = time.monotonic()
        self._witness.read(row)
        writer.add(video_sample_to(sample), row.extra)
        tally.add(
            samples=1,
            clips=sample.num_clips,
            video_seconds=sample.end_seconds - sample.start_seconds,
            seconds_decode=decoded - started,
            seconds_write=time.monotonic() - decoded,
        )


def versioned_plan(rows: pa.Table) -> pa.Table:
    """Rows of a plan with the version of the format in the metadata."""
    return rows.cast(schema.versioned(rows.schema, "plan"))
