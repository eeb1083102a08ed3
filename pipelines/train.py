"""Training under Ray Train: the same loop on every worker, restarted from its last checkpoint when one is lost."""

import json
import math
import os
import re
import tempfile
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from pydantic.dataclasses import dataclass
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Gauge

from videolavit.models.network import STRICT, ModelError
from videolavit.records.files import InputError
from videolavit.records.storage import StorageError
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.data import DataError
from videolavit.training.parallel import Ranks
from videolavit.training.run import TrainTask, train
from videolavit.training.trainer import Diverged

from .common import cluster_has
from .loaders import ray_feed

RAY_FILES = "ray"
"""Folder in that of the run for what Ray Train writes about it."""

USER_MISTAKES = (DataError, ModelError, CheckpointError, InputError, StorageError, Diverged)


class TrainingFailed(RuntimeError):
    """The workers failed more often than allowed."""


class StorageNotShared(RuntimeError):
    """A worker sees another folder under the run's path."""


class UserMistake(ValueError):
    """What a worker found to be wrong with what it was asked; starting again would not help."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterSettings:
    """Where the workers run.

    Args:
        workers: Processes under Ray Train, one a GPU where there are any; 0 trains in this process, without Ray.
        min_workers: With fewer than `workers` the run is elastic: it goes on with as many as there are.
        cpus_per_worker: Cores that each is given.
        loaders: Actors of Ray Data that load the samples of each worker, a core each, on any node; for inputs that are
            heavy to decode, resize or encode. 0 leaves it to threads of the worker.
        max_failures: Times that lost workers are replaced.
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
            raise ValueError("loaders are for training under Ray Train; give --workers 1 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= max(self.workers, 1):
            raise ValueError(f"min_workers must be 1 to workers ({self.workers}), not {self.min_workers}")

    def scaling(self, use_gpu: bool) -> ScalingConfig:
        elastic = self.min_workers is not None and self.min_workers < self.workers
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if elastic else self.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": self.cpus_per_worker},
        )


def train_on_ray(task: TrainTask, cluster: ClusterSettings) -> None:
    """Trains on the workers of a cluster.

    Raises:
        UserMistake, TrainingFailed: with the reason of the worker that failed.
    """
    output = Path(task.output)
    (output / MISTAKE).unlink(missing_ok=True)
    _check_counts(task, cluster)
    _check_cores(cluster)
    use_gpu = cluster_has("GPU") > 0
    trainer = TorchTrainer(
        _work,
        train_loop_config={"task": task, "token": _mark(output), "loaders": cluster.loaders},
        scaling_config=cluster.scaling(use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=cluster.timeout),
        run_config=RunConfig(
            name=f"{task.component}-{uuid.uuid4().hex[:8]}",
            storage_path=os.path.abspath(output / RAY_FILES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        _check_mistake(output)
        raise TrainingFailed(_reason(error)) from None
    _check_mistake(output)


def _check_counts(task: TrainTask, cluster: ClusterSettings) -> None:
    """Every number of workers that an elastic run may come to must divide the batch."""
    if cluster.min_workers is None or task.train.batch_tokens is not None:
        return  # every worker looks at its own number
    batch, counts = task.train.batch, range(cluster.min_workers, cluster.workers + 1)
    for count in counts:
        if batch % count:
            raise UserMistake(
                f"a batch of {batch} cannot be divided among {count} workers, which --min-workers {counts.start} "
                f"allows; choose a multiple of {math.lcm(*counts)}, or a narrower range"
            )


def _check_cores(cluster: ClusterSettings) -> None:
    """Without a core for its loaders a run would wait for ever."""
    workers = cluster.min_workers or cluster.workers
    needed, there = workers * (cluster.cpus_per_worker + cluster.loaders), cluster_has("CPU")
    if cluster.loaders and needed > there:
        raise UserMistake(
            f"{workers} workers with {cluster.loaders} loaders each take {needed:g} cores, and the cluster has "
            f"{there:g}; lower --loaders, --workers or --cpus-per-worker"
        )


def _work(config: dict[str, Any]) -> None:
    """What a worker does."""
    task: TrainTask = config["task"]
    output = Path(task.output)
    _check_shared(output, config["token"])
    if (output / MISTAKE).exists():
        return  # Ray started again after it, as it does after all that is raised
    first = ray.train.get_context().get_world_rank() == 0
    trackers = [RayMetrics(task.component)] if first else []
    try:
        feed = partial(ray_feed, loaders=config["loaders"]) if config["loaders"] else None
        train(task, Ranks.here(), trackers=trackers, line=_line(output), on_save=_report, feed=feed)
    except USER_MISTAKES as error:
        (output / MISTAKE).write_text(str(error))
        raise


def _check_mistake(output: Path) -> None:
    if (output / MISTAKE).exists():
        raise UserMistake((output / MISTAKE).read_text())


MISTAKE = ".mistake"
POINTER = "checkpoint.json"


def _report(checkpoint: Path, metrics: dict[str, float]) -> None:
    """Tells Ray Train of a checkpoint by its address: it lies on the storage that all share already."""
    if ray.train.get_context().get_world_rank():
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory() as pointer:
        (Path(pointer) / POINTER).write_text(json.dumps({"checkpoint": str(checkpoint.absolute())}))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(pointer))


class RayMetrics:
    """Gauges on the metrics endpoint of the node, for Prometheus."""

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


# ---- the storage that the workers share ---------------------------------------------------------------------------


def _mark(output: Path) -> str:
    """Writes a word into the run's folder that every worker must find there."""
    token = uuid.uuid4().hex
    output.mkdir(parents=True, exist_ok=True)
    (output / ".shared").write_text(token)
    return token


def _check_shared(output: Path, token: str) -> None:
    marker = output / ".shared"
    found = marker.read_text() if marker.is_file() else None
    if found != token:
        raise StorageNotShared(
            f"{output} on node {ray.util.get_node_ip_address()} is not the folder that the driver sees; "
            "--output must be on storage that all nodes share"
        )


def _line(output: Path) -> Callable[[str], None]:
    """Lines for people go through a file: what workers print would come with Ray's own."""

    def write(text: str) -> None:
        with (output / LOG).open("a") as file:
            file.write(text + "\n")

    return write


LOG = "train.log"


def _reason(error: BaseException) -> str:
    """The message of the worker's exception, out of the traceback that Ray gives."""
    causes = getattr(error, "worker_failures", None) or {0: error}
    lines = str(next(iter(causes.values()))).strip().splitlines()
    raised = [index for index, line in enumerate(lines) if re.match(r"[\w.]+: ", line)]
    return "\n".join(lines[raised[-1] :] if raised else lines[-1:])
