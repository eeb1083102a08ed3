"""A process that starts or joins Ray: checks of its surroundings, arguments for `ray.init`, and the process left as it
was found. Ray itself is imported by the callers."""

import contextlib
import json
import logging
import os
import pwd
import resource
import secrets
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .progress import OnProgress, Progress

LOCAL = "local"
"""Address that makes Ray start a cluster on this machine."""

ANSWER_SECONDS = 5.0
"""Time that a cluster has to accept a connection, and again to answer on it, in seconds."""

KEEPALIVE = {"grpc_client_keepalive_time_ms": 70_000, "grpc_client_keepalive_timeout_ms": 30_000}
"""Settings by which Ray's clients notice within 100 s that a connection is dead, instead of 7 minutes: an answer that
was lost while the network was cut leaves its driver waiting. Processes take them from `RAY_` variables when they start.
Ray's servers close a connection whose client asks more often than they expect, which is every 60 s at most."""

LEAST_OPEN_FILES = 128
"""Open files with which Ray starts and runs a worker."""

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - Ray's place for objects

_SOCKET_FOLDER_BYTES = 107 - len("/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""Longest path of a folder below which Linux takes the paths of Ray's sockets, in bytes."""

_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_TOKEN = secrets.token_hex(32)  # for all sessions of this process: Ray reads a token once


class RayUnavailable(RuntimeError):
    """Ray cannot be started or joined here. The message is one line that says why, and names the fix."""


@contextlib.contextmanager
def restored_process() -> Iterator[None]:
    """Restores the environment variables, Ray's log levels, warning filters and handler of SIGTERM after the body."""
    environment = dict(os.environ)
    loggers = [logging.getLogger("ray")]
    loggers += [log for name in list(logging.root.manager.loggerDict) if (log := _ray_logger(name)) is not None]
    levels = [(log, log.level) for log in loggers]
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for log, level in levels:
            log.setLevel(level)
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _ray_logger(name: str) -> logging.Logger | None:
    return logging.getLogger(name) if name.startswith("ray.") else None


@contextlib.contextmanager
def ray_arguments(on_progress: OnProgress, ray_config: Any) -> Iterator[dict[str, Any]]:
    """Yields the arguments of `ray.init`: for the cluster at `RAY_ADDRESS`, or else for a Ray of this process.

    A Ray of this process keeps its sockets and logs in a temporary folder that only this user can read. The folder is
    removed after the body, unless `RAY_TMPDIR` names one. Ray prints nothing.

    Args:
        on_progress: Called once, with the stage `ray`.
        ray_config: The object `ray._config`; after the body it is as it was.

    Raises:
        RayUnavailable: no cluster answers at `RAY_ADDRESS`, or Ray cannot run here.
    """
    # Without an address Ray would wait for minutes for the last head node of this machine, even a dead one.
    address = os.environ.get("RAY_ADDRESS") or LOCAL
    arguments = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    is_local = address == LOCAL
    on_progress(Progress("ray", message="starting Ray" if is_local else f"connecting to Ray at {address}"))
    try:
        os.getcwd()
    except OSError:
        raise RayUnavailable("the working directory is gone; change to one that exists") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored_process())
        stack.enter_context(_keepalive(ray_config))
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        if not is_local:
            _check_reachable(address)
            yield arguments
            return
        _check_open_files()
        _check_loopback()
        _name_user()
        # A dashboard takes a tenth of a core all the time; a cluster has its own.
        arguments["include_dashboard"] = False
        if "RAY_TMPDIR" not in os.environ:
            # Ray opens its folder to all users; one above it is this user's alone
            arguments["_temp_dir"] = f"{stack.enter_context(_temporary_folder(_SOCKET_FOLDER_BYTES))}/r"
        large = stack.enter_context(_temporary_folder())
        arguments["object_spilling_directory"] = large
        if not os.access(SHARED_MEMORY, os.W_OK):
            arguments["_plasma_directory"] = large
        yield arguments


@contextlib.contextmanager
def _keepalive(ray_config: Any) -> Iterator[None]:
    """Sets `KEEPALIVE` for this process and those that it starts, except what the environment sets."""
    new = {name: value for name, value in KEEPALIVE.items() if f"RAY_{name}" not in os.environ}
    old = {name: getattr(ray_config, name)() for name in new}
    os.environ.update({f"RAY_{name}": str(value) for name, value in new.items()})
    ray_config.initialize(json.dumps(new))
    try:
        yield
    finally:
        ray_config.initialize(json.dumps(old))


@contextlib.contextmanager
def starting_ray(address: str, ray_constants: Any) -> Iterator[None]:
    """Turns errors of `ray.init`, the body, into `RayUnavailable`, keeps messages of Ray's C++ core out of stderr, a
    working folder of data off the path of its workers, and a Ray of this process on loopback.

    It prints them at level ERROR, and announces a change of level. One of them, about the restart of actors
    (ray-project/ray#53727), appears for every actor pool of Ray Data.

    Args:
        address: Cluster, or `LOCAL`.
        ray_constants: The module `ray._private.ray_constants`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_away_from_strangers())
        if address == LOCAL:
            stack.enter_context(_on_loopback(ray_constants))
        if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
            os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
            stack.enter_context(_no_stderr())
        try:
            yield
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            if address != LOCAL:
                raise _no_answer(address, f" ({reason})") from error
            raise RayUnavailable(f"Ray cannot start on this machine: {reason}") from error


@contextlib.contextmanager
def remarks_as_progress(worker: Any, on_progress: OnProgress) -> Iterator[None]:
    """Reports what Ray remarks on a cluster, such as the death of a worker, while the body runs: its first sentence.

    Ray prints such remarks on standard output, which is for results, whatever `log_to_driver` says.

    Args:
        worker: The module `ray._private.worker`. Ray is initialised in the body.
        on_progress: Called with the stage `ray`, in a thread of Ray.
    """

    def report(data: dict[str, Any], ignore_prefix: bool) -> None:
        for remark in data["lines"]:
            on_progress(Progress("ray", message=remark.strip().partition("\n")[0].partition(". ")[0]))

    before, worker.print_to_stdstream = worker.print_to_stdstream, report
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextlib.contextmanager
def _on_loopback(ray_constants: Any) -> Iterator[None]:
    """Lets a Ray that is started in the body listen on loopback alone, as it does on Windows and macOS.

    It would listen on all interfaces.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that it starts
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False  # read when it was imported
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _away_from_strangers() -> Iterator[None]:
    """Leaves the working folder during the body, unless this process takes code from there too.

    Ray puts the folder in which it is started or joined on the path of its workers, before all others: they would run
    an `av.py` that lies among the videos of a stranger.
    """
    if os.path.realpath(os.getcwd()) in map(os.path.realpath, sys.path):
        yield
        return
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _check_reachable(address: str) -> None:
    """Refuses a host and port where no gRPC server answers: Ray would try for minutes, and print each try."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        raise _no_answer(address) from None
    if host is None or port is None:
        return
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS) as connection:
            if "RAY_USE_TLS" in os.environ:
                return
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(4)
    except OSError:
        raise _no_answer(address) from None
    if answer[3:] != b"\4":  # the type of a frame of settings, with which every HTTP/2 server answers
        raise _no_answer(address)


def _no_answer(address: str, reason: str = "") -> RayUnavailable:
    return RayUnavailable(
        f"no Ray cluster answers at RAY_ADDRESS={address}{reason}; unset it to start Ray on this machine"
    )


def _check_open_files() -> None:
    """Refuses a limit of open files at which Ray's processes abort with a stack trace."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < LEAST_OPEN_FILES:
        raise RayUnavailable(
            f"Ray cannot start on this machine: a process may open {limit} files; allow more with `ulimit -n 4096`"
        )


def _check_loopback() -> None:
    """Refuses a machine whose processes cannot talk to each other: Ray would wait for ever."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), ANSWER_SECONDS).close()
    except OSError as error:
        raise RayUnavailable(
            f"Ray cannot start on this machine: no connection to 127.0.0.1 ({error.strerror or error}); "
            "allow network connections within the machine, or name a cluster in RAY_ADDRESS"
        ) from None


def _name_user() -> None:
    """Gives this user what Ray reads from a home and the user database, where a container has none."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", str(os.getuid()))
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() and not _keeps_token():
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN


def _keeps_token() -> bool:
    """True if Ray can read its token in the home, or write one there."""
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return os.access(folder / "auth_token", os.R_OK)
        where = folder if folder.exists() else folder.parent
        return where.is_dir() and os.access(where, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):
        return False


def _temporary_folder(longest: int | None = None) -> "tempfile.TemporaryDirectory[str]":
    """A new folder of this user alone, in the first of the usual places that can be written.

    Args:
        longest: Bytes that its path may have.
    """
    places = [place for place in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", SHARED_MEMORY) if place]  # noqa: S108
    for place in places:
        with contextlib.suppress(OSError):
            made = tempfile.TemporaryDirectory(prefix="ray-", dir=os.path.abspath(place), ignore_cleanup_errors=True)
            if longest is None or len(os.fsencode(made.name)) <= longest:
                return made
            made.cleanup()
    short = "" if longest is None else f" and has a path of at most {longest - len('/ray-12345678')} bytes"
    raise RayUnavailable(
        f"Ray cannot start on this machine: none of {', '.join(places)} can be written{short}; "
        "name such a folder in TMPDIR"
    )
