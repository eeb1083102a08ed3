"""Start and end of the service on one machine, or on the cluster that this process is connected to."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray import serve
from ray._private import ray_constants, worker
from ray.exceptions import RayError

from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.ray_setup import ray_arguments, remarks_as_progress, restored_process, starting_ray
from videolavit.records.storage import absolute_url
from videolavit.sandbox.call import describe_layers

from .application import APPLICATION_NAME, application, unhealthy_deployments
from .checks import check_resources, check_settings
from .logs import log_lines
from .proxy import CALLBACK, middlewares
from .settings import ServeSettings

SHUTDOWN_MARGIN = 15.0
"""Time that Serve may take to end beyond `drain_seconds`, in seconds."""

LAST_BYTES = 0.5
"""Time for the proxies to send the ends of the last answers, in seconds."""

NICENESS = "RAY_worker_niceness"
"""Environment variable by which Ray sets the priority of its worker processes."""

log = logging.getLogger("videolavit.serve")


class StartFailed(RuntimeError):
    """The service could not be started; the message says which deployments failed, and why."""


@dataclass(frozen=True)
class RunningService:
    """Service that answers requests.

    Args:
        url: Address of the service, without a slash at the end.
        model: Name that clients call the model by.
        is_trained: False for a preset, whose untrained weights generate noise.
        sandbox: Line for people about the sandbox in which uploads are decoded.
    """

    url: str
    model: str
    is_trained: bool
    sandbox: str


@contextlib.contextmanager
def serving(
    settings: ServeSettings,
    on_progress: OnProgress = ignore_progress,
    on_log: Callable[[str], None] | None = None,
) -> Iterator[RunningService]:
    """Serves a model during the body of the `with` statement.

    The Ray that this process is connected to is used; otherwise one is started, and stopped at the end. At the end,
    requests in flight are finished, and jobs in progress return to the queue.

    Args:
        on_progress: Called with the stages `ray`, `start` and `stop` as they begin.
        on_log: Called with each log line of the ingresses on this machine, in a thread of its own.

    Raises:
        ValueError: the address, the file of keys, the storage or the database cannot be used, or the replicas need more
            than this machine has.
        ModelError: the model lacks a part, or cannot be read.
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
        StartFailed: a deployment does not start, or the service runs already.
    """
    settings = _with_absolute_paths(settings)
    model = check_settings(settings)
    own_ray = not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    with contextlib.ExitStack() as stack:
        console = None if on_log is None else stack.enter_context(log_lines(on_log))
        stack.enter_context(_ray(on_progress))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # without reports about its own progress
        on_progress(Progress("start", message="loading the model"))
        before = serve.status()
        if APPLICATION_NAME in before.applications:
            raise StartFailed(f"{APPLICATION_NAME} is served on this Ray already; end that service first")
        if own_ray:
            check_resources(settings)
        try:
            try:
                http = {"host": settings.host, "port": settings.port, "root_path": settings.root_path}
                serve.start(http_options=http)
                serve.run(application(settings, console), name=APPLICATION_NAME, route_prefix="/", blocking=False)
            except (RuntimeError, RayError) as error:
                reasons = unhealthy_deployments() or str(error).splitlines()[:1]
                raise StartFailed("the service could not be started: " + "; ".join(reasons)) from None
            try:
                yield RunningService(settings.url, settings.model_name, model.is_trained, describe_layers())
            finally:
                on_progress(Progress("stop", message="finishing requests; jobs in progress return to the queue"))
                _drain(settings.drain_seconds)
        finally:
            # a Ray of our own ends with all that runs on it, and answers to the last; of another, Serve stays if it was
            # there before
            if not own_ray:
                _stop(settings.drain_seconds, stop_serve=not before.proxies)


def _with_absolute_paths(settings: ServeSettings) -> ServeSettings:
    """Settings for processes that may have another working directory."""
    model = absolute_url(settings.model) if Path(settings.model).is_dir() else settings.model
    keys = None if settings.keys is None else absolute_url(settings.keys)
    return replace(settings, model=model, keys=keys, storage=absolute_url(settings.storage))


@contextlib.contextmanager
def _ray(on_progress: OnProgress) -> Iterator[None]:
    """The Ray that is connected, or else the cluster at `RAY_ADDRESS`, or one that is started here and stopped again.

    Raises:
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
    """
    if ray.is_initialized():
        with restored_process():
            yield
        return
    with ray_arguments(on_progress, ray._config) as arguments, remarks_as_progress(worker, on_progress):
        os.environ.setdefault(NICENESS, "0")  # by default Ray's processes give way to all others
        os.environ[CALLBACK] = f"{middlewares.__module__}:{middlewares.__name__}"
        try:
            with starting_ray(arguments["address"], ray_constants):
                ray.init(**arguments)
            yield
        finally:
            ray.shutdown()


def _drain(seconds: float) -> None:
    """Finishes the requests in flight; when the application is deleted, Serve ends idle deployments that they need."""
    try:
        serve.get_app_handle(APPLICATION_NAME).broadcast("drain", seconds).results(timeout_s=seconds + SHUTDOWN_MARGIN)
        time.sleep(LAST_BYTES)
    except (RuntimeError, RayError, TimeoutError) as error:
        log.warning("the service could not be drained: %s", type(error).__name__)


def _stop(drain_seconds: float, stop_serve: bool) -> None:
    """Ends the application, and Serve with `stop_serve`."""
    if APPLICATION_NAME in serve.status().applications:
        serve.delete(APPLICATION_NAME, _blocking=False)
    deadline = time.monotonic() + drain_seconds + SHUTDOWN_MARGIN
    while APPLICATION_NAME in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.2)
    if stop_serve:
        serve.shutdown()
