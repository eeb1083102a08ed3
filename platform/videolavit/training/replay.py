"""A step of a run computed again, to see which sample made it what it was."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from videolavit.files import write_beside
from videolavit.models.network import ModelError
from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.files import InputError
from videolavit.records.storage import Folder, StorageError, StorageSettings, confined
from videolavit.scratch import scratch_folder

from .checkpoint import CheckpointError
from .data import DataError
from .loader import SkippedSample
from .metrics import logged_at
from .parallel import Ranks
from .remote import RemoteRun, brought_here, is_remote
from .run import build_component
from .task import RunStart, TrainTask, start_of
from .trainer import Trainer

REPLAY_ERRORS = (CheckpointError, DataError, InputError, ModelError, StorageError)
"""Errors of `replay`: the run, its model or its data are not there any more, or are others."""

_RESULT, _FAILURE = "result.json", "-error.json"


@dataclass(frozen=True, kw_only=True)
class ReplayedSample:
    """A sample of a step.

    Attributes:
        sample_id: Id of the sample, or its address.
        source: Name of its source.
        rank: Rank that had it.
        micro_batch: Micro batch of the rank that had it, counted from 0.
        loss: Mean loss over its valid positions.
        positions: Number of valid positions, such as predicted tokens; 1 where samples count alike.
    """

    sample_id: str
    source: str
    rank: int
    micro_batch: int
    loss: float
    positions: int


@dataclass(frozen=True, kw_only=True)
class ReplayedStep:
    """A step that was computed again.

    Attributes:
        step: Number of the step, counted from 1.
        loss: Loss of the step.
        grad_norm: Norm of its gradient, before it was scaled down.
        metrics: Loss, its terms, the norm, and the loss of each source, as a run logs them.
        logged: Metrics that the run logged at this step; they are of this step alone where it logged every step.
        samples: Samples of the step, in the order of the ranks and their micro batches.
        skipped: Samples that could not be used.
        world: Number of ranks.
        micro_batch: Samples per forward pass of a rank.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    metrics: dict[str, float]
    logged: dict[str, float]
    samples: list[ReplayedSample]
    skipped: list[SkippedSample]
    world: int
    micro_batch: int


def replay(
    run: str | Path,
    step: int,
    *,
    workers: int | None = None,
    micro_batch: int | None = None,
    storage: StorageSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ReplayedStep:
    """Computes a step of a run again, from the checkpoint before it, and changes nothing in the run's folder.

    On a CPU with the run's own number of ranks and micro-batch the result is that of the run, bit for bit.

    Args:
        run: Folder or URL of the run.
        step: Number of the step, as its log counts them, from 1.
        workers: Processes of this machine, one for each rank; None for as many ranks as the run had.
        micro_batch: Samples per forward pass of a rank; None for as many as in the run.
        storage: S3 endpoint.
        on_progress: Receives which checkpoint it goes on from; only with one process.

    Raises:
        CheckpointError: the folder holds no run, or its data or settings are others now.
        DataError, InputError, ModelError, StorageError: its model or data cannot be used any more.
    """
    if step < 1:
        raise CheckpointError(f"steps are counted from 1; there is no step {step}")
    folder = Folder(str(run), storage or StorageSettings())
    start = start_of(folder, step)
    settings = start.task.settings
    if step > settings.steps:
        raise CheckpointError(f"{run} has the steps 1 to {settings.steps}, not {step}")
    changed = replace(settings, trackers=(), profile=0, keep_best=None, micro_batch=micro_batch or settings.micro_batch)
    stored = start.task.inputs
    endpoint = folder.settings.s3_endpoint or stored.storage.s3_endpoint
    confinement = confined(replace(stored.storage, s3_endpoint=endpoint), stored.train)
    inputs = replace(stored, validation=[], storage=confinement)
    task = replace(start.task, settings=changed, inputs=inputs)
    start = replace(start, world=workers or start.world, task=task)
    if start.world == 1:
        with _threads(start.threads):
            found = _replay_rank(start.task, Ranks.here(), step, on_progress)
    else:
        found = _replay_group(start, step)
    return replace(found, logged=logged_at(folder, step))


def _replay_rank(task: TrainTask, ranks: Ranks, step: int, on_progress: OnProgress) -> ReplayedStep:
    """Computes a step on a rank; the samples of all ranks are in the result."""
    with contextlib.ExitStack() as stack:
        here, remote = stack.enter_context(brought_here(task)), None
        if is_remote(task.output):
            remote = RemoteRun(task.output, task.inputs.storage, stack.enter_context(scratch_folder()))
            remote.fetch()
        folder = Path(task.output) if remote is None else remote.local
        component = build_component(here)
        trainer = Trainer(component, here.settings, ranks, folder, on_progress=on_progress, remote=remote, replays=step)
        data, interval, norm = trainer.replay()
    own: list[ReplayedSample] = []
    used = [(number, items) for number, items in enumerate(data.items) if items]
    for (number, items), (sources, losses) in zip(used, interval.losses, strict=True):
        ids = iter([sample_id for item in items for sample_id in item.identify()])
        for source, (loss, positions) in zip(sources, losses.tolist(), strict=True):
            if source:  # no padding
                own.append(
                    ReplayedSample(
                        sample_id=next(ids),
                        source=source,
                        rank=ranks.rank,
                        micro_batch=number,
                        loss=loss / max(positions, 1.0),
                        positions=int(positions),
                    )
                )
    metrics = interval.metrics(component.objective.weights, ranks, None)
    return ReplayedStep(
        step=step,
        loss=metrics.get("loss"),
        grad_norm=norm,
        metrics=metrics,
        logged={},
        samples=[sample for samples in ranks.gather(own) for sample in samples],
        skipped=[sample for samples in ranks.gather(data.skipped) for sample in samples],
        world=ranks.world,
        micro_batch=task.settings.micro_batch,
    )


# ---- several ranks ------------------------------------------------------------------------------------------------


def _replay_group(start: RunStart, step: int) -> ReplayedStep:
    """Computes a step on as many processes of this machine as the run had ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with scratch_folder() as scratch:
        try:
            spawn(_replay_process, (start, step, port, scratch), nprocs=start.world)
        except ProcessException:
            failures = sorted(scratch.glob(f"*{_FAILURE}"))
            if not failures:
                raise
            failure = json.loads(failures[0].read_text())
            kind = next(one for one in REPLAY_ERRORS if one.__name__ == failure["type"])
            raise kind(failure["message"]) from None
        values = json.loads((scratch / _RESULT).read_text())
    samples, skipped = values.pop("samples"), values.pop("skipped")
    return ReplayedStep(
        **values,
        samples=[ReplayedSample(**sample) for sample in samples],
        skipped=[SkippedSample(**sample) for sample in skipped],
    )


def _replay_process(rank: int, start: RunStart, step: int, port: int, scratch: Path) -> None:
    torch.set_num_threads(start.threads)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        backend = "nccl"
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=start.world)
    try:
        found = _replay_rank(start.task, Ranks.here(), step, ignore_progress)
    except REPLAY_ERRORS as error:
        kind = next(one for one in REPLAY_ERRORS if isinstance(error, one))
        with write_beside(scratch / f"{rank}{_FAILURE}") as (unfinished,):  # another rank's failure may end this one
            unfinished.write_text(json.dumps({"type": kind.__name__, "message": str(error)}))
        raise
    if rank == 0:
        (scratch / _RESULT).write_text(json.dumps(asdict(found)))
    dist.destroy_process_group()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
