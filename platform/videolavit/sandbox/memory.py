"""Memory of child processes: what each may take, and who may take much."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from .errors import ProcessNotStarted

CODE = 1 << 30
"""Address space that the libraries of a child take before it does anything, in bytes; most of it is no memory."""

SMALLEST, LARGEST = 256 << 20, 2 << 30
"""Bounds of a child's share, in bytes. The largest is more than decoding 8K video takes."""

_PAUSE = 0.05


def usual_limit() -> int:
    """Address space of a child, in bytes: with one on each core, children take half of the node at most."""
    share = _node_memory() // 2 // (os.cpu_count() or 1)
    return CODE + min(max(share, SMALLEST), LARGEST)


def large_limit() -> int:
    """Address space of the one child of a node that may take much, in bytes: half of what is free."""
    return CODE + max(_available() // 2, SMALLEST)


@contextmanager
def only_large_one(deadline: float, is_wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Waits until no other child of this user takes much on this node; the lock ends with its process.

    Args:
        deadline: Latest time, of `time.monotonic`.
        is_wanted: Tells whether it is worth to wait on.

    Raises:
        TimeoutError: the deadline passed, or nobody waits any more.
        ProcessNotStarted: the lock cannot be taken: it is somebody else's file, or there is no room for it.
    """
    file = Path(tempfile.gettempdir()) / f"videolavit-{os.getuid()}.lock"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ProcessNotStarted(f"{file} cannot be locked: {error.strerror}") from None
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline or not is_wanted():
                    raise TimeoutError from None
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


@cache
def _node_memory() -> int:
    """Memory of this node or container, in bytes."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_group("memory.max")])


def _available() -> int:
    """Memory that can be taken without swapping, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _node_memory() // 2
    free = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), _node_memory() // 2)
    left = [most - used for most, used in zip(_of_group("memory.max"), _of_group("memory.current"), strict=False)]
    return max(0, min([free, *left]))


def _of_group(name: str) -> list[int]:
    """Number in a file of the control group of this container; none where there is no limit."""
    try:
        return [int(Path("/sys/fs/cgroup", name).read_text())]
    except (OSError, ValueError):
        return []
