"""Ray for the length of a call: the one that this process is connected to, or else one that is started for it."""

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator

import ray

from videolavit.progress import OnProgress, Progress, ignore_progress

LOCAL = "local"
"""Address that makes Ray start a cluster on this machine."""

CONNECT_SECONDS = 10.0
_UNAVAILABLE = "no Ray cluster answers at RAY_ADDRESS={}; unset it to start Ray on this machine"


class RayUnavailable(RuntimeError):
    """No Ray cluster answers at the address in `RAY_ADDRESS`."""


@contextlib.contextmanager
def ray_session(on_progress: OnProgress = ignore_progress) -> Iterator[None]:
    """Provides Ray to the body of the `with` statement.

    A Ray that this process is connected to is used, and stays connected. Otherwise the process connects to the cluster
    at `RAY_ADDRESS`, as `ray job submit` sets it, or starts Ray on this machine where no address is set; at the end it
    disconnects, or stops what it started. Ray prints nothing.

    Args:
        on_progress: Called once, with the stage `ray`, before Ray is started or joined.

    Raises:
        RayUnavailable: no cluster answers at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    # Without an address Ray would wait for minutes for the last head node of this machine, even a dead one.
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    local = address == LOCAL
    on_progress(Progress("ray", message="starting Ray" if local else f"connecting to Ray at {address}"))
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if not local:
        _check_reachable(address)
    # A dashboard takes a tenth of a core all the time; a cluster has its own.
    options = {"include_dashboard": False} if local else {}
    try:
        with _quiet_core():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ConnectionError:
        raise RayUnavailable(_UNAVAILABLE.format(address)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address `host:port` where nothing listens: Ray would try for minutes, and print each try."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError:
        raise RayUnavailable(_UNAVAILABLE.format(address)) from None


@contextlib.contextmanager
def _quiet_core() -> Iterator[None]:
    """Keeps messages of Ray's C++ core out of stderr. It prints them at level ERROR, and announces a change of level.

    One of them, about the restart of actors (ray-project/ray#53727), appears for every actor pool of Ray Data.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
