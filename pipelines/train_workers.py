"""Training under Ray Train: workers on a cluster, of which lost ones are replaced from the last checkpoint."""

import contextlib
import math
import re
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from pydantic import Field
from pydantic.dataclasses import dataclass
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from videolavit.models.network import STRICT, ModelError
from videolavit.progress import OnProgress, Progress
from videolavit.records.files import InputError
from videolavit.records.storage import StorageDown, StorageError
from videolavit.scratch import scratch_folder
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.components import UnknownComponent
from videolavit.training.data import DataError
from videolavit.training.lease import FolderInUse
from videolavit.training.parallel import Ranks
from videolavit.training.rejects import TooManyRejects
from videolavit.training.remote import RemoteRun, is_remote
from videolavit.training.run import train_rank
from videolavit.training.task import TrainTask
from videolavit.training.trainer import TRAIN_STAGE, Diverged, ShouldStop, Stopped

from .common import cluster_has
from .loaders import ray_loader
from .train_nodes import NodeTorchConfig, TrainWatch, watched_nodes
from .train_reports import RunReports, WorkerSign

LOG = "train.log"
"""File of the run for messages of a training on a cluster."""

_SHARED = ".shared"
POLL_SECONDS = 0.5
"""Interval at which the driver takes what workers report, and a worker asks whether to stop, in seconds."""


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
    StorageDown,
    StorageError,
    Diverged,
    ClusterTooSmall,
    FolderInUse,
    UnknownComponent,
)
"""Errors of `train` that starting again does not cure."""

_ENDINGS = (Stopped, TooManyRejects)
"""Ends of a run that has saved its last step, and that continues when it is started again."""


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

    workers: int = Field(default=0, ge=0)
    min_workers: int | None = None
    cpus_per_worker: float = Field(default=1.0, gt=0)
    loaders: int = Field(default=0, ge=0)
    max_failures: int = Field(default=3, ge=0)
    timeout: int = Field(default=1800, ge=1)

    def __post_init__(self) -> None:
        if self.loaders and not self.workers:
            raise ValueError("loaders are for training under Ray Train; set workers to 1 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= max(self.workers, 1):
            raise ValueError(f"min_workers must be 1 to workers ({self.workers}), not {self.min_workers}")

    def worker_resources(self, use_gpu: bool) -> dict[str, float]:
        """Resources of a worker, by Ray's names."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})

    def scaling(self, use_gpu: bool) -> ScalingConfig:
        elastic = self.min_workers is not None and self.min_workers < self.workers
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if elastic else self.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": self.cpus_per_worker},
        )


def train_on_ray(task: TrainTask, cluster: ClusterSettings, on_progress: OnProgress, should_stop: ShouldStop) -> None:
    """Trains on the workers of the connected Ray, and hands their progress on."""
    _check_cores(cluster)
    token = None if is_remote(task.output) else _mark(Path(task.output))
    # Ray Train's `fit` blocks, and changes the signal handlers of its process: it has one of its own
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    here: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": node}
    reports = ray.remote(**here)(RunReports).remote()
    running = ray.remote(max_retries=0, **here)(_fit).remote(task, cluster, token, reports)
    try:
        _follow(running, reports, cluster, on_progress, should_stop)
    except BaseException:
        ray.cancel(running, force=True)
        raise
    failure: str | None = ray.get(running)
    error = ray.get(reports.error.remote())
    if error is not None:
        raise next(kind for kind in (*TRAIN_ERRORS, *_ENDINGS) if kind.__name__ == error[0])(error[1])
    if failure is not None:
        raise TrainingFailed(failure)


def _follow(
    running: ray.ObjectRef[Any],
    reports: Any,
    cluster: ClusterSettings,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> None:
    """Hands on what the workers report until they are done, and what is known of their nodes to the workers.

    Raises:
        TrainingFailed: nothing is heard of any worker for so long that nothing will be.
    """
    each, limit = cluster.worker_resources(cluster_has("GPU") > 0), 2.0 * cluster.timeout
    with watched_nodes() as nodes:
        watch = TrainWatch(cluster.min_workers or cluster.workers, each, nodes)
        done: list[Any] = []
        while not done:
            done, _ = ray.wait([running], timeout=POLL_SECONDS)
            progress, signs = ray.get(reports.take.remote())
            watch.heard(signs)
            for report in progress:
                on_progress(report)
            line = watch.look()
            if line is not None:
                on_progress(Progress("nodes", message=line))
            if watch.silence > limit:
                raise TrainingFailed(
                    f"nothing was heard of any worker for {limit:.0f} s; the same command continues from the last "
                    "checkpoint"
                )
            if nodes().draining:
                reports.drain.remote(nodes().draining)
            if should_stop():
                reports.stop.remote()


def _fit(task: TrainTask, cluster: ClusterSettings, token: str | None, reports: Any) -> str | None:
    """Runs Ray Train; returns the reason of a failure."""
    use_gpu = cluster_has("GPU") > 0
    with scratch_folder() as folder:  # for Ray Train's own files: the run's folder has all that a resume needs
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"task": task, "token": token, "loaders": cluster.loaders, "reports": reports},
            scaling_config=cluster.scaling(use_gpu),
            torch_config=NodeTorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=cluster.timeout),
            run_config=RunConfig(
                name=f"{task.component}-{uuid.uuid4().hex[:8]}",
                storage_path=str(folder),
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


def check_counts(task: TrainTask, cluster: ClusterSettings) -> None:
    """Refuses a run in which some number of workers does not divide the batch.

    Raises:
        ClusterTooSmall: there is such a number.
    """
    batch, counts = task.settings.batch, range(cluster.min_workers or cluster.workers, cluster.workers + 1)
    for count in counts if task.settings.batch_tokens is None else ():
        if batch % count:
            is_elastic = len(counts) > 1
            why = f", which min_workers {counts.start} allows" if is_elastic else ""
            raise ClusterTooSmall(
                f"a batch of {batch} cannot be divided among {count} workers{why}; choose a multiple of "
                f"{math.lcm(*counts)}, or {'a narrower range' if is_elastic else 'another number of workers'}"
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
    reports = config["reports"]
    if config["token"] is not None:
        _check_shared(Path(task.output), config["token"])
    if ray.get(reports.error.remote()) is not None:
        return  # Ray Train restarts workers after any error; this one would come again
    first = ray.train.get_context().get_world_rank() == 0
    stops = StopRequest(reports)
    try:
        with _folder_of_run(task, first, reports) as (folder, remote):
            train_rank(
                task,
                Ranks.here(),
                trackers=[RayMetrics(task.component)] if first else [],
                on_progress=partial(_report, folder / LOG, reports),
                remote_loader=partial(ray_loader, actors=config["loaders"]) if config["loaders"] else None,
                should_stop=stops,
                remote=remote,
            )
    except _ENDINGS as error:  # Ray Train would start the workers again after an error
        if first:
            ray.get(reports.fail.remote(type(error).__name__, str(error)))
    except TRAIN_ERRORS as error:
        kind = next(one for one in TRAIN_ERRORS if isinstance(error, one))
        ray.get(reports.fail.remote(kind.__name__, str(error)))
        raise


@contextlib.contextmanager
def _folder_of_run(task: TrainTask, is_first: bool, reports: Any) -> Iterator[tuple[Path, RemoteRun | None]]:
    """Folder that a worker writes to, and its remote counterpart, to which the first worker sends what changes."""
    if not is_remote(task.output):
        yield Path(task.output), None
        return

    def say(message: str) -> None:
        reports.add.remote(Progress(TRAIN_STAGE, message=message))

    with scratch_folder() as scratch:
        remote = RemoteRun(task.output, task.inputs.storage, scratch / "run", say)
        remote.local.mkdir()
        remote.fetch()
        with remote.sending() if is_first else contextlib.nullcontext():
            yield remote.local, remote


class StopRequest:
    """Question to the driver whether to stop, and sign of life; asked now and then, without a wait for the answer.

    A step never waits for Ray: an answer that is lost with a connection would stop the training for minutes.
    """

    def __init__(self, reports: Any) -> None:
        context, node = ray.train.get_context(), ray.get_runtime_context().get_node_id()
        self._sign = WorkerSign(
            context.get_world_rank(), context.get_world_size(), node, ray.util.get_node_ip_address()
        )
        self._reports = reports
        self._next_look, self._stops = 0.0, False
        self._answer = reports.stops.remote(self._sign)

    def __call__(self) -> bool:
        if not self._stops and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            if ray.wait([self._answer], timeout=0)[0]:
                with contextlib.suppress(ray.exceptions.RayError):  # the driver is cut off: it is asked again
                    self._stops = ray.get(self._answer)
                self._answer = self._reports.stops.remote(self._sign)
        return self._stops


def _report(log: Path, reports: Any, progress: Progress) -> None:
    """Reports progress: messages for people to the log, all of it to the driver."""
    with log.open("a") as lines:
        lines.write(progress.message + "\n")
    reports.add.remote(progress)


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
