"""Clip shards, videos, images and texts to token shards.

    sources -> plan (1:N) -> shards fixed in OUT/plan
            -> prepare (1 shard : 1 block) -> encode (1 block : 1 file) -> OUT/tokens

CPU actors read, decode and resize; encoder actors, on a GPU where there is one, encode and commit. A shard passes from
the one to the other as a whole, so that its samples, the batches that they are encoded in, and its name come from the
plan alone. The guarantees are those of `pipelines.decompose`, by the same means.
"""

import importlib.metadata
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.identity import made_by, run_identity
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import KINDS, Kind, PlanSettings, prepare_sample, shard_by
from videolavit.records.plan import assign_token_shards
from videolavit.records.prepare import PrepareSettings
from videolavit.records.prepared import PreparedShard, ShardBuilder, failed_block, waiting_block, waiting_node
from videolavit.records.rejects import RejectFacts
from videolavit.records.rows import extra_fields, plan_rows_from
from videolavit.records.samples import SampleSettings
from videolavit.records.schema import PLAN, RESERVED
from videolavit.records.shards import RUN_FILE, TOKEN_SHARDS, ShardWriter
from videolavit.records.source_files import isolated
from videolavit.records.storage import Folder, StorageSettings, confined
from videolavit.records.token_index import TokenIndex
from videolavit.records.token_report import write_token_report
from videolavit.records.tokenizer_info import EncodeSettings, TokenizerInfo
from videolavit.records.traffic import S3_TRAFFIC, without_traffic

from .common import (
    Rejected,
    SampleWork,
    WorkerSettings,
    cluster_has,
)
from .decompose import versioned_plan
from .encode_probe import measure_on_cluster
from .faults import FaultWitness, OutputFails, StorageFails, check_output, output_faults
from .feeding import PlanUnreadable, WaitingShards, feed, planned_rows
from .run import Pipeline, PlanSummary, RunSettings, RunSummary, list_inputs, plan_run, start_run
from .session import ray_session
from .shard_records import ShardTally, WorkThread, node_address, record_block

if TYPE_CHECKING:
    from videolavit.records.encode import Encoder

CALLS_PER_ENCODER = 2
"""Shards that an encoder works on at once: one is encoded while another is committed."""

PREPARER_MEMORY = 700 << 20
"""Memory of an actor that holds a shard and its copy on the way, 75 MB each, and its decoding child, in bytes."""


@dataclass(frozen=True, kw_only=True)
class EncoderPoolSettings:
    """Settings of encoder actors, which hold the tokenizers.

    Args:
        encoders: Encoder actors; by default as many as the GPUs hold, or as there are cores without GPUs.
        gpu_fraction: Share of a GPU that each takes; by default a whole one if the cluster has any. 0 is the CPU.
    """

    encoders: int | None = None
    gpu_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.encoders is not None and self.encoders < 1:
            raise ValueError(f"encoders must be at least 1, not {self.encoders}")
        if self.gpu_fraction is not None and not 0 <= self.gpu_fraction <= 1:
            raise ValueError(f"gpu_fraction must be from 0 to 1, not {self.gpu_fraction:g}")


@dataclass(frozen=True, kw_only=True)
class TokenizeRequest:
    """A run of tokenizing.

    Args:
        inputs: Runs of `videolavit decompose` and their shards; folders, globs, tables, tars and files of videos,
            images or texts, on any fsspec location.
        output: Folder or `s3://` prefix of the run; None only to plan.
        encode: Model, and how it encodes.
        listing: Settings of the reading of inputs.
    """

    encode: EncodeSettings
    inputs: Sequence[str] = ()
    output: str | None = None
    listing: InputSettings = default(default_factory=InputSettings)
    sample: SampleSettings = default(default_factory=SampleSettings)
    run: RunSettings = default(default_factory=RunSettings)
    encoders: EncoderPoolSettings = default(default_factory=EncoderPoolSettings)
    workers: WorkerSettings = default(default_factory=WorkerSettings)
    storage: StorageSettings = default(default_factory=StorageSettings)


def tokenize(request: TokenizeRequest, on_progress: OnProgress = ignore_progress) -> RunSummary:
    """Tokenizes clip shards, videos, images and texts into Parquet token shards.

    The same request continues an interrupted run, and does the new part of a grown input. Uses the Ray that is
    connected; otherwise starts one and stops it again.

    Raises:
        InputError, StorageError, IdentityMismatch, ModelError: mistakes in the request.
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
        PlanningConflict, PlanningIncomplete: the same request continues.
    """
    if request.output is None:
        raise ValueError("a run needs an output")
    S3_TRAFFIC.take()  # counts of other work before
    pipeline = Tokenization(request, _read_tokenizers(request, on_progress))
    storage = confined(request.storage, request.inputs)
    listing = list_inputs(pipeline, request.inputs, storage) if request.inputs else None
    with ray_session(on_progress):  # the identity of the run has the device, which depends on the cluster
        return start_run(pipeline, listing, request.output, storage, request.run, on_progress)


def plan_tokenization(request: TokenizeRequest, on_progress: OnProgress = ignore_progress) -> PlanSummary:
    """Computes the work of `tokenize` and its cost, and writes nothing. The tokenizers are timed on a few batches.

    Raises the errors of `tokenize`.
    """
    pipeline = Tokenization(request, _read_tokenizers(request, on_progress))
    storage = confined(request.storage, request.inputs)
    listing = list_inputs(pipeline, request.inputs, storage)
    with ray_session(on_progress):
        summary = plan_run(pipeline, listing, request.output, storage, request.run, on_progress)
        task = pipeline.task
        on_progress(Progress("model", message="timing the tokenizers"))
        speed = measure_on_cluster(task.encode, task.tokenizers, task.gpu_fraction)
    if speed is None:
        return summary
    hours = speed.hours(summary.new.figures) + speed.hours(summary.waiting.figures)
    return replace(summary, encoder_hours=hours * (task.gpu_fraction or 1.0), encoder_device=task.device)


def _read_tokenizers(request: TokenizeRequest, on_progress: OnProgress) -> TokenizerInfo:
    on_progress(Progress("model", message="reading the tokenizers"))
    from videolavit.records.encode import read_tokenizers  # torch and the libraries around it take seconds

    return read_tokenizers(request.encode.model)


@dataclass(frozen=True, kw_only=True)
class TokenizeTask:
    """All that decides how a shard is made."""

    prepare: PrepareSettings
    encode: EncodeSettings
    tokenizers: TokenizerInfo
    gpu_fraction: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpu_fraction else "cpu"


class Tokenization(Pipeline):
    """Clip shards, videos, images and texts to token shards."""

    name = "tokenize"
    shards = TOKEN_SHARDS
    reserved = RESERVED

    def __init__(self, request: TokenizeRequest, tokenizers: TokenizerInfo) -> None:
        super().__init__(PlanSettings(sample=request.sample, inputs=request.listing), request.workers)
        self.request, self.tokenizers = request, tokenizers

    @cached_property
    def task(self) -> TokenizeTask:
        """Settings that decide how a shard is made. Asks the cluster for GPUs, so that Ray must be connected."""
        request, tokenizers = self.request, self.tokenizers
        share = request.encoders.gpu_fraction
        return TokenizeTask(
            prepare=PrepareSettings(request.sample, request.listing, tokenizers.picture_size, tokenizers.motion_size),
            encode=request.encode,
            tokenizers=tokenizers,
            gpu_fraction=(1.0 if cluster_has("GPU") else 0.0) if share is None else share,
        )

    def identity(self) -> dict[str, Any]:
        task, tokenizers = self.task, self.task.tokenizers
        decomposition = run_identity(self.settings.sample)
        encoding = {"dtype": task.encode.dtype, "batch": task.encode.batch(tokenizers, task.device)}
        return decomposition | {
            "kind": TOKEN_SHARDS.folder,
            "settings": decomposition["settings"] | encoding,
            "tokenizers": {"digests": tokenizers.digests, "num_codes": tokenizers.num_codes},
            "device": task.device,
            **_library_versions(),
        }

    def takes(self, kind: Kind) -> bool:
        return True

    def assign(self, rows: pa.Table, generation: int) -> pa.Table:
        sizes = pa.nulls(rows.num_rows, pa.float64())
        for name in rows["kind"].unique().to_pylist():
            sizes = pc.if_else(pc.equal(rows["kind"], name), KINDS[name].token_bytes(rows), sizes)
        rows = rows.set_column(rows.schema.get_field_index("size_bytes"), PLAN.field("size_bytes"), sizes)
        return versioned_plan(assign_token_shards(rows, generation, shard_by))

    def figures(self, rows: pa.Table) -> dict[str, float]:
        modalities = Counter(KINDS[name].modality for name in rows["kind"].to_pylist())
        clips = (pc.sum(rows["num_clips"]).as_py() or 0) - modalities["image"]
        return {"clips": clips, "images": modalities["image"], "texts": modalities["text"]}

    def work(self, shards: WaitingShards, folder: Folder) -> "ray.data.Dataset":
        task = self.task
        preparing, encoding = _pools(self.workers, self.request.encoders, task, shards.count)
        return (
            feed(shards, folder)
            .map_batches(
                _Preparer,
                fn_constructor_kwargs={
                    "output": folder.url,
                    "settings": task.prepare,
                    "storage": folder.settings,
                    "workers": self.workers,
                },
                batch_size=None,
                batch_format="pyarrow",
                **preparing,
            )
            .map_batches(
                _Encoder,
                fn_constructor_kwargs={"output": folder.url, "storage": folder.settings, "task": task},
                batch_size=None,
                batch_format="pyarrow",
                **encoding,
            )
        )

    def describe(self, counts: Mapping[str, float], seconds: float) -> str:
        parts = [f"{counts[name]:.0f} {name}" for name in ("clips", "images", "texts", "rejects") if counts[name]]
        return ", ".join([*parts, f"{counts['tokens'] / seconds:,.0f} tokens/s"])

    def counts(self, totals: Counter[str]) -> dict[str, int]:
        names = ("videos", "images", "texts", "clips", "visual_tokens", "motion_tokens")
        return {name: totals[name] for name in names}

    def write_report(self, folder: Folder, run: dict[str, Any], rejects: Sequence[RejectFacts]) -> None:
        write_token_report(folder, run, rejects)

    def write_index(self, folder: Folder) -> int:
        return TokenIndex(folder).update()


def _pools(
    workers: WorkerSettings, encoders: EncoderPoolSettings, task: TokenizeTask, shards: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the two pools. What starts at once fits the cluster; more of either makes a cluster grow.

    Without GPUs an actor of either pool takes half a core: videos keep the preparers busy, clip shards the tokenizers,
    and the pool that has less to do leaves its cores to the other.
    """
    cores, gpus = max(int(cluster_has("CPU")), 1), cluster_has("GPU")
    fits = int(gpus) * int(1 / task.gpu_fraction) if task.gpu_fraction else cores
    actors = min(encoders.encoders or max(fits, 1), shards)
    decoders = min(workers.workers or cores, shards)
    share = 1 if task.gpu_fraction else 0.5
    preparing = {
        "compute": ray.data.ActorPoolStrategy(
            min_size=min(decoders, cores), max_size=decoders, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": share,
        "memory": PREPARER_MEMORY,
    }
    encoding = {
        # While one shard is encoded another is committed, and a third waits.
        "compute": ray.data.ActorPoolStrategy(
            min_size=max(min(actors, fits), 1),
            max_size=actors,
            max_tasks_in_flight_per_actor=4,
            max_concurrent_calls_per_actor=CALLS_PER_ENCODER,
            enable_true_multi_threading=True,
        ),
        "num_cpus": 0 if task.gpu_fraction else share,
        "num_gpus": task.gpu_fraction,
    }
    return preparing, encoding


class _Preparer:
    """Actor: makes one shard at a time ready; a child process does the reading and decoding."""

    def __init__(
        self, output: str, settings: PrepareSettings, storage: StorageSettings, workers: WorkerSettings
    ) -> None:
        self._folder = Folder(output, storage)
        self._settings, self._storage = settings, storage
        self._prepare = SampleWork(isolated(prepare_sample, storage), workers, "tokenize")
        self._witness = FaultWitness(storage, workers.believe_storage)
        self._node, self._thread = node_address(), WorkThread()
        self._can_write = False

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        name = block["shard"][0].as_py()

        def alive(is_due: bool) -> pa.Table | None:
            return waiting_block(name, self._node) if is_due else None

        try:
            yield (yield from self._thread.run(partial(self._make_shard, planned_rows(block)), alive))
        except (StorageFails, OutputFails, PlanUnreadable) as failure:
            yield failed_block(name, str(failure))
        except Exception as failure:
            # The encoder passes the reason on; an exception here would lose it.
            yield failed_block(name, repr(failure))

    def _make_shard(self, plan: pa.Table) -> pa.Table:
        """Prepares a shard, as a block. Raises StorageFails, OutputFails."""
        if not self._can_write:  # for the encoders, before work that they could not keep
            check_output(self._folder, RUN_FILE, self._node)
            self._can_write = True
        shard = ShardBuilder(plan["shard"][0].as_py(), extra_fields(plan.schema))
        rows = plan_rows_from(plan)
        for row in rows:
            try:
                sample = self._prepare(row, self._settings, self._storage)
            except Rejected as failure:
                self._witness.check(row, failure.reject.error_type, rows)
                shard.rejects.append(failure.reject)
            else:
                self._witness.read(row)
                shard.add(row, sample)
        return shard.to_block()


class _Encoder:
    """Actor: encodes and commits prepared shards. Two calls overlap, but only one of them is on the device."""

    def __init__(self, output: str, storage: StorageSettings, task: TokenizeTask) -> None:
        self._folder, self._task = Folder(output, storage), task
        self._device = threading.Lock()
        # Loaded while the first shards are prepared. Every call reports what went wrong with it.
        self._encoder = ThreadPoolExecutor(1).submit(self._load)
        self._node, self._thread = node_address(), WorkThread(CALLS_PER_ENCODER)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        block = without_traffic(block)
        name, error = block["shard"][0].as_py(), block["error"][0].as_py()
        preparing = waiting_node(block)
        if preparing is not None:
            yield record_block(name, preparing)
            return
        tally = ShardTally(name, self._node)
        if error is None:
            try:
                shard = PreparedShard.from_block(block, self._task.prepare)
                made = yield from self._thread.run(partial(self._make, shard), tally.alive)
                tally.add(**made)
                for reject in shard.rejects:
                    tally.reject(reject.error_type)
            except OutputFails as failure:
                error = str(failure)
            except Exception as failure:
                # The shard stays pending, and the driver can say why. Raising would only lose the reason.
                error = repr(failure)
        yield tally.block(f"{name}: {error}" if error else None)

    def _load(self) -> "Encoder":
        from videolavit.records.encode import Encoder  # torch, which the other actors do without

        return Encoder(self._task.encode, self._task.tokenizers, self._task.device)

    def _make(self, shard: PreparedShard) -> dict[str, float]:
        with self._device:
            started = time.monotonic()
            rows = self._encoder.result().rows(shard)
            encoded = time.monotonic()
        metadata = {**self._task.tokenizers.metadata(), **made_by(_library_versions())}
        with ShardWriter(self._folder, shard.name, shard.extra(), TOKEN_SHARDS, metadata) as writer:
            if rows.num_rows:
                writer.add(rows)
            for reject in shard.rejects:
                writer.reject(reject)
            with output_faults(self._node):
                writer.commit()
            counts = writer.counts
        rejects = len(shard.rejects)
        return {
            **counts,
            "shards": 1,
            "bytes": writer.size_bytes,
            "seconds_prepare": shard.work_seconds,
            "seconds_encode": encoded - started,
            "seconds_commit": time.monotonic() - encoded,
            "samples": rows.num_rows + rejects,
            "tokens": counts["visual_tokens"] + counts["motion_tokens"],
            "rejects": rejects,
        }


def _library_versions() -> dict[str, str]:
    """Versions of the libraries that decide the codes of prepared samples."""
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
