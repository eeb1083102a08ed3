"""Training as a function: in this process, or under Ray Train on a cluster, which restarts lost workers from the last
checkpoint."""

import json
import math
import os
import re
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from pydantic.dataclasses import dataclass
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from videolavit.files import write_beside
from videolavit.models.network import STRICT, ModelError
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.files import InputError
from videolavit.records.storage import StorageError, confined
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.component import ComponentSettings
from videolavit.training.components import UnknownComponent, settings_type
from videolavit.training.data import DataError
from videolavit.training.metrics import METRICS, read_metrics
from videolavit.training.parallel import Ranks
from videolavit.training.run import MODEL_FOLDER, TrainTask, train_rank
from videolavit.training.settings import TrainInputs, TrainSettings
from videolavit.training.trainer import SKIPPED, Diverged

from .common import cluster_has
from .live import LIVE_FILE, live_progress
from .loaders import ray_loader
from .progress_file import read_progress, write_progress
from .session import ray_session

RAY_FILES = "ray"
"""Folder of the run for files of Ray Train."""

LOG = "train.log"
"""File of the run for messages of a training on a cluster."""

_PROGRESS, _ERROR, _SHARED = ".progress.jsonl", ".error.json", ".shared"
POLL_SECONDS = 0.5
"""Interval at which the progress of the workers is polled, in seconds."""


class TrainingFailed(RuntimeError):
    """The workers failed more often than `max_failures` allows."""


class StorageNotShared(RuntimeError):
    """A worker sees another folder at the path of the run than the driver."""


class ClusterTooSmall(ValueError):
    """The cluster, or its settings, cannot run the training; the message names the fix."""


TRAIN_ERRORS = (
    DataError,
    ModelError,
    CheckpointError,
    InputError,
    StorageError,
    Diverged,
    ClusterTooSmall,
    UnknownComponent,
)
"""Errors of `train` that starting again does not cure."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterSettings:
    """Workers of the training.

    Args:
        workers: Worker processes under Ray Train, each with a GPU where the cluster has any; 0 trains in this process,
            without Ray.
        min_workers: Makes the run elastic: it continues with as few workers as this.
        cpus_per_worker: CPU cores of each worker.
        loaders: Ray Data actors that load the samples of each worker, on any node, with one core each; for samples that
            are expensive to decode, resize or encode. 0 loads them in threads of the worker.
        max_failures: Number of times that lost workers are replaced.
        timeout: Seconds after which a collective operation that hangs is an error.
    """

    workers: int = 0
    min_workers: int | None = None
    cpus_per_worker: float = 1.0
    loaders: int = 0
    max_failures: int = 3
    timeout: int = 1800

    def __post_init__(self) -> None:
        if min(self.workers, self.loaders, self.max_failures) < 0:
            raise ValueError("workers, loaders and max_failures must be at least 0")
        if self.loaders and not self.workers:
            raise ValueError("loaders are for training under Ray Train; set workers to 1 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= max(self.workers, 1):
            raise ValueError(f"min_workers must be 1 to workers ({self.workers}), not {self.min_workers}")

    def scaling(self, use_gpu: bool) -> ScalingConfig:
        elastic = self.min_workers is not None and self.min_workers < self.workers
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if elastic else self.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": self.cpus_per_worker},
        )


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """Result of a training.

    Attributes:
        model: Folder of the model with the trained part.
        steps: Optimizer steps of the run, those of earlier starts included.
        metrics: Last value of each metric: `loss` and its terms, `validation/loss` and its terms, `samples/...`, speed.
        skipped: Samples that could not be used, by the type of the error.
        seconds: Wall time of this call, in seconds.
    """

    model: Path
    steps: int
    metrics: dict[str, float]
    skipped: dict[str, int]
    seconds: float


def train(
    component: str,
    model: str,
    inputs: TrainInputs,
    output: str | Path,
    *,
    objective: ComponentSettings | None = None,
    settings: TrainSettings | None = None,
    cluster: ClusterSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TrainSummary:
    """Trains a component of a model. The same call continues a run from its last checkpoint.

    Args:
        component: Name of the component, see `videolavit.training.components.COMPONENTS`.
        model: Model folder or preset that training starts from.
        inputs: Training and held-out data.
        output: Folder of the run; on a cluster, one that all nodes share.
        objective: Settings of the component; None for its defaults.
        settings: Settings of the training loop; None for the defaults.
        cluster: Workers; None trains in this process, without Ray. With workers, the connected Ray is used, or else
            one is started and stopped again.
        on_progress: Receives each line of metrics as progress of the stage `train`, whose units are steps.

    Raises:
        UnknownComponent, DataError, ModelError, InputError, StorageError: a mistake in what is asked for.
        CheckpointError: the folder holds another run.
        Diverged: the gradient was not finite for too many steps.
        ClusterTooSmall: the cluster cannot run the training.
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
        TrainingFailed: the workers failed too often. Another call continues from the last checkpoint.
    """
    started = time.monotonic()
    kind = settings_type(component)
    if objective is None:
        objective = kind()
    elif not isinstance(objective, kind):
        raise DataError(f"the objective of {component} is a {kind.__name__}, not a {type(objective).__name__}")
    inputs = replace(inputs, storage=confined(inputs.storage, [*inputs.train, *inputs.validation]))
    task = TrainTask(component, model, inputs, objective, settings or TrainSettings(), str(output))
    folder = Path(output)
    with live_progress(component, partial(_write_live, folder), on_progress) as shown:
        if cluster is None or not cluster.workers:
            train_rank(task, Ranks.here(), on_progress=shown)
        else:
            with ray_session(shown):
                _train_on_ray(task, cluster, shown)
    found = read_metrics(folder) if (folder / METRICS).exists() else {}
    lines = (folder / SKIPPED).read_text().splitlines() if (folder / SKIPPED).exists() else []
    # a resumed run may have skipped a sample twice, in the same step
    skipped = {(one["source"], one["position"]): one["error_type"] for one in map(json.loads, lines)}
    return TrainSummary(
        model=folder / MODEL_FOLDER,
        steps=task.settings.steps,
        metrics={name: values[-1][1] for name, values in found.items() if name != "step"},
        skipped=dict(Counter(skipped.values())),
        seconds=time.monotonic() - started,
    )


def _write_live(folder: Path, state: bytes) -> None:
    """Replaces the state of the run, once its folder is there."""
    if folder.is_dir():
        with write_beside(folder / LIVE_FILE) as (unfinished,):
            unfinished.write_bytes(state)


def _train_on_ray(task: TrainTask, cluster: ClusterSettings, on_progress: OnProgress) -> None:
    """Trains on the workers of the connected Ray, and hands their progress on."""
    _check_counts(task, cluster)
    _check_cores(cluster)
    output = Path(task.output)
    token = _mark(output)
    for name in (_ERROR, _PROGRESS):
        (output / name).unlink(missing_ok=True)
    # Ray Train's `fit` blocks, and changes the signal handlers of its process: it has one of its own
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    fit = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=node)(_fit)
    running = fit.remote(task, cluster, token)
    progress = read_progress(output / _PROGRESS)
    try:
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([running], timeout=POLL_SECONDS)
            for report in next(progress):
                on_progress(report)
    except BaseException:
        ray.cancel(running, force=True)
        raise
    failure: str | None = ray.get(running)
    if (output / _ERROR).exists():
        error = json.loads((output / _ERROR).read_text())
        raise next(kind for kind in TRAIN_ERRORS if kind.__name__ == error["type"])(error["message"])
    if failure is not None:
        raise TrainingFailed(failure)


def _fit(task: TrainTask, cluster: ClusterSettings, token: str) -> str | None:
    """Runs Ray Train; returns the reason of a failure."""
    use_gpu = cluster_has("GPU") > 0
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "token": token, "loaders": cluster.loaders},
        scaling_config=cluster.scaling(use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=cluster.timeout),
        run_config=RunConfig(
            name=f"{task.component}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.abspath(Path(task.output) / RAY_FILES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        # the message of the worker's exception, out of the traceback that Ray gives
        causes = getattr(error, "worker_failures", None) or {0: error}
        lines = str(next(iter(causes.values()))).strip().splitlines()
        raised = [index for index, line in enumerate(lines) if re.match(r"[\w.]+: ", line)]
        return "\n".join(lines[raised[-1] :] if raised else lines[-1:])
    return None


def _check_counts(task: TrainTask, cluster: ClusterSettings) -> None:
    """Refuses an elastic run in which some number of workers does not divide the batch."""
    if cluster.min_workers is None or task.settings.batch_tokens is not None:
        return  # every worker checks its own number
    batch, counts = task.settings.batch, range(cluster.min_workers, cluster.workers + 1)
    for count in counts:
        if batch % count:
            raise ClusterTooSmall(
                f"a batch of {batch} cannot be divided among {count} workers, which min_workers {counts.start} "
                f"allows; choose a multiple of {math.lcm(*counts)}, or a narrower range"
            )


def _check_cores(cluster: ClusterSettings) -> None:
    """Refuses a run whose loaders would wait for a core for ever."""
    workers = cluster.min_workers or cluster.workers
    needed, there = workers * (cluster.cpus_per_worker + cluster.loaders), cluster_has("CPU")
    if cluster.loaders and needed > there:
        raise ClusterTooSmall(
            f"{workers} workers with {cluster.loaders} loaders each take {needed:g} cores, and the cluster has "
            f"{there:g}; lower loaders, workers or cpus_per_worker"
        )


# ---- on a worker --------------------------------------------------------------------------------------------------


def _worker(config: dict[str, Any]) -> None:
    """Training loop of a worker, for Ray Train."""
    task: TrainTask = config["task"]
    output = Path(task.output)
    _check_shared(output, config["token"])
    if (output / _ERROR).exists():
        return  # Ray Train restarts workers after any error; this one would come again
    first = ray.train.get_context().get_world_rank() == 0
    try:
        train_rank(
            task,
            Ranks.here(),
            trackers=[RayMetrics(task.component)] if first else [],
            on_progress=partial(_report, output),
            on_save=_report_checkpoint,
            remote_loader=partial(ray_loader, actors=config["loaders"]) if config["loaders"] else None,
        )
    except TRAIN_ERRORS as error:
        kind = next(one for one in TRAIN_ERRORS if isinstance(error, one))
        (output / _ERROR).write_text(json.dumps({"type": kind.__name__, "message": str(error)}))
        raise


def _report(output: Path, progress: Progress) -> None:
    """Reports progress through files: messages for people to the log, all of it for the driver beside it."""
    with (output / LOG).open("a") as log:
        log.write(progress.message + "\n")
    write_progress(output / _PROGRESS, progress)


def _report_checkpoint(checkpoint: Path, metrics: dict[str, float]) -> None:
    """Reports a checkpoint to Ray Train by its path: it is on shared storage already."""
    if ray.train.get_context().get_world_rank():
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as pointer:
        (Path(pointer) / "checkpoint.json").write_text(json.dumps({"checkpoint": str(checkpoint.absolute())}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(pointer))


class RayMetrics:
    """Tracker whose gauges are on the metrics endpoint of the node, for Prometheus."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._gauges: dict[str, Gauge] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in {"step": float(step), **values}.items():
            key = "videolavit_train_" + "".join(letter if letter.isalnum() else "_" for letter in name)
            if key not in self._gauges:
                self._gauges[key] = Gauge(key, f"{name} of the training", tag_keys=("component",))
            self._gauges[key].set(value, tags={"component": self._component})

    def close(self) -> None:
        pass


# ---- shared storage -----------------------------------------------------------------------------------------------


def _mark(output: Path) -> str:
    """Writes a token into the folder of the run, which every worker must find there."""
    token = uuid.uuid4().hex
    output.mkdir(parents=True, exist_ok=True)
    (output / _SHARED).write_text(token)
    return token


def _check_shared(output: Path, token: str) -> None:
    marker = output / _SHARED
    found = marker.read_text() if marker.is_file() else None
    if found != token:
        raise StorageNotShared(
            f"{output} on node {ray.util.get_node_ip_address()} is not the folder that the driver sees; "
            "the output must be on storage that all nodes share"
        )
