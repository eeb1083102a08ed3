"""Ray for the length of a call: the one that this process is connected to, or else one that is started for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import ray
from ray._private import ray_constants, worker
from ray.data import DataContext

from videolavit.progress import OnProgress, ignore_progress
from videolavit.ray_setup import ray_arguments, remarks_as_progress, restored_process, starting_ray


@contextlib.contextmanager
def ray_session(on_progress: OnProgress = ignore_progress) -> Iterator[None]:
    """Provides Ray to the body of the `with` statement.

    A Ray that this process is connected to is used, and stays connected. Otherwise the process connects to the cluster
    at `RAY_ADDRESS`, as `ray job submit` sets it, or starts Ray on this machine where no address is set; at the end it
    disconnects, or stops what it started. Ray prints nothing, and its settings in this process are as they were.

    Args:
        on_progress: Called with the stage `ray` before Ray is started or joined, and with what it remarks later.

    Raises:
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot start on this machine.
    """
    with DataContext.current(DataContext.get_current().copy()):
        if ray.is_initialized():
            with restored_process():
                yield
            return
        with ray_arguments(on_progress, ray._config) as arguments, remarks_as_progress(worker, on_progress):
            try:
                handler = signal.getsignal(signal.SIGTERM)
                with starting_ray(arguments["address"], ray_constants):
                    ray.init(**arguments)
                if callable(handler) and threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)  # the caller's own, which Ray has replaced
                yield
            finally:
                ray.shutdown()
