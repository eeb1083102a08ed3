"""Training as a function: in this process, or under Ray Train on a cluster, which restarts lost workers from the last
checkpoint."""

import contextlib
import errno
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic.dataclasses import dataclass

from videolavit.files import write_beside
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.addresses import joined
from videolavit.records.storage import StorageError, StorageSettings, absolute_url, confined
from videolavit.scratch import scratch_folder
from videolavit.training.component import ComponentSettings
from videolavit.training.components import settings_type
from videolavit.training.continuing import find_origin
from videolavit.training.data import DataError
from videolavit.training.lease import leased
from videolavit.training.metrics import METRICS, read_metrics
from videolavit.training.parallel import Ranks
from videolavit.training.rejects import SKIPPED
from videolavit.training.remote import RemoteRun, is_remote
from videolavit.training.run import MODEL_FOLDER, train_rank
from videolavit.training.settings import TrainInputs, TrainSettings
from videolavit.training.task import TrainTask
from videolavit.training.trainer import TRAIN_STAGE, ShouldStop, never_stop

from .live import LIVE_FILE, live_progress
from .session import ray_session
from .train_workers import TRAIN_ERRORS, ClusterSettings, TrainingFailed, check_counts, train_on_ray

__all__ = ["TRAIN_ERRORS", "ClusterSettings", "TrainSummary", "TrainingFailed", "train"]

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """Result of a training.

    Attributes:
        model: Folder of the model with the trained part; an address where the output is one.
        steps: Optimizer steps of the run, those of earlier starts included.
        metrics: Last value of each metric: `loss` and its terms, `validation/loss` and its terms, `samples/...`, speed.
        skipped: Samples that could not be used, by the type of the error.
        seconds: Wall time of this call, in seconds.
    """

    model: Path | str
    steps: int
    metrics: dict[str, float]
    skipped: dict[str, int]
    seconds: float


def train(
    component: str,
    model: str | None,
    inputs: TrainInputs,
    output: str | Path,
    *,
    objective: ComponentSettings | None = None,
    settings: TrainSettings | None = None,
    cluster: ClusterSettings | None = None,
    on_progress: OnProgress = ignore_progress,
    should_stop: ShouldStop = never_stop,
) -> TrainSummary:
    """Trains a component of a model. The same call continues a run from its last checkpoint.

    Args:
        component: Name of the component, see `videolavit.training.components.COMPONENTS`.
        model: Model folder or preset that training starts from; None for that of `settings.continue_from`.
        inputs: Training and held-out data.
        output: Folder of the run, or the address of one on S3; with workers, one that all nodes reach.
        objective: Settings of the component; None for its defaults.
        settings: Settings of the training loop; None for the defaults.
        cluster: Workers; None trains in this process, without Ray. With workers, the connected Ray is used, or else
            one is started and stopped again.
        on_progress: Receives each line of metrics as progress of the stage `train`, whose units are steps.
        should_stop: Asked after every step; once it is true, the run saves and ends.

    Raises:
        UnknownComponent, DataError, ModelError, InputError, StorageError: a mistake in what is asked for.
        CheckpointError: the folder holds another run.
        FolderInUse: another training writes to the folder.
        Diverged: the gradient was not finite for too many steps.
        TooManyRejects: too many samples could not be used. Another call continues.
        Stopped: `should_stop` became true. Another call continues.
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
    # absolute, since workers have other working folders
    train_urls, validation = ([absolute_url(url) for url in urls] for urls in (inputs.train, inputs.validation))
    storage = confined(inputs.storage, [*train_urls, *validation])
    inputs = replace(inputs, train=train_urls, validation=validation, storage=storage)
    if getattr(objective, "cache", None):
        objective = replace(objective, cache=absolute_url(objective.cache))  # type: ignore[type-var, attr-defined]
    settings = settings or TrainSettings()
    model, origin = _beginning(model, settings, storage)
    settings = replace(settings, continue_from=origin, continue_moments=settings.continue_moments and bool(origin))
    url = _checked(output)
    task = TrainTask(component, model, inputs, objective, settings, url)
    if is_remote(url):
        with scratch_folder() as scratch:
            folder = scratch / "run"
            _train_there(task, cluster, folder, on_progress, should_stop)
            return _summary(folder, joined(url, MODEL_FOLDER), settings.steps, started)
    folder = Path(url)
    live = live_progress(component, partial(_write_live, folder), on_progress)
    with _writable(folder), _made(folder), leased(folder), live as shown_progress:
        _train(task, cluster, shown_progress, should_stop)
    return _summary(folder, folder / MODEL_FOLDER, settings.steps, started)


def _train(
    task: TrainTask,
    cluster: ClusterSettings | None,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    remote: RemoteRun | None = None,
) -> None:
    """Trains in this process, or on workers."""
    if cluster is not None and cluster.workers:
        check_counts(task, cluster)
        with ray_session(on_progress):
            train_on_ray(task, cluster, on_progress, should_stop)
    else:
        train_rank(task, Ranks.here(), on_progress=on_progress, should_stop=should_stop, remote=remote)


def _train_there(
    task: TrainTask, cluster: ClusterSettings | None, folder: Path, on_progress: OnProgress, should_stop: ShouldStop
) -> None:
    """Trains for a remote output, and leaves its metrics in a folder of this machine."""

    def say(message: str) -> None:
        on_progress(Progress(TRAIN_STAGE, 0, task.settings.steps, message))

    remote = RemoteRun(task.output, task.inputs.storage, folder, say)
    remote.claim()
    live = live_progress(task.component, partial(_write_live, folder), on_progress)
    with _writable(folder), _made(folder), remote.leased():
        remote.fetch()
        remote.sweep()
        with remote.sending(), live as shown_progress:
            _train(task, cluster, shown_progress, should_stop, remote)
    for name in (METRICS, SKIPPED):  # workers have sent them from folders of their own
        with contextlib.suppress(FileNotFoundError):
            remote.bring(name)


def _summary(folder: Path, model: Path | str, steps: int, started: float) -> TrainSummary:
    """Summary of a run from the files in its folder."""
    found = read_metrics(folder) if (folder / METRICS).exists() else {}
    lines = (folder / SKIPPED).read_text().splitlines() if (folder / SKIPPED).exists() else []
    # a resumed run may have skipped a sample twice, in the same step
    skipped = {(one["source"], one["position"]): one["error_type"] for one in map(json.loads, lines)}
    return TrainSummary(
        model=model,
        steps=steps,
        metrics={name: values[-1][1] for name, values in found.items() if name != "step"},
        skipped=dict(Counter(skipped.values())),
        seconds=time.monotonic() - started,
    )


def _beginning(model: str | None, settings: TrainSettings, storage: StorageSettings) -> tuple[str, str | None]:
    """Model that a run starts from, and checkpoint whose weights replace its own; as absolute paths.

    Raises:
        DataError: no model is named, or two.
        CheckpointError: there is no checkpoint to continue from.
    """
    checkpoint = None
    if settings.continue_from is not None:
        origin = find_origin(settings.continue_from, storage)
        if origin.checkpoint is None:
            if model is not None:
                raise DataError(f"continue_from is the model {origin.model}; leave the model out, or name a checkpoint")
            if settings.continue_moments:
                raise DataError(f"continue_from is the model {origin.model}, which has no moments; name a checkpoint")
        model = model or origin.model
        checkpoint = origin.checkpoint
    if model is None:
        raise DataError("no model is named, and nothing tells which one the checkpoint was trained with")
    is_place = is_remote(model) or Path(model.removeprefix("file://")).is_dir()  # and no name
    return absolute_url(model) if is_place else model, checkpoint


def _checked(output: str | Path) -> str:
    """Absolute path or address of a run's folder. Raises StorageError for a file."""
    url = absolute_url(str(output)).rstrip("/") or "/"
    if not is_remote(url) and Path(url).exists() and not Path(url).is_dir():
        raise StorageError(f"cannot write to {url}: it is a file; choose another output")
    return url


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes it again if it was not there and the body leaves it empty."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # a run has begun
                folder.rmdir()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Turns the errors of a disk that is full or read-only into a StorageError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from None


def _write_live(folder: Path, state: bytes) -> None:
    """Replaces the state of the run."""
    with write_beside(folder / LIVE_FILE) as (unfinished,):
        unfinished.write_bytes(state)
