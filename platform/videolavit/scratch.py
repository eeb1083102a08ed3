"""Folders for what is in the making. A process that is killed leaves its own behind; the next one removes it.

A folder is locked as long as its process lives, so that no clock decides what is left behind.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAME_PREFIX = "videolavit-"
"""Beginning of the names of all folders in the system's temporary folder."""

FRESH_SECONDS = 60.0
"""Age below which a folder without a lock stays: its process may be about to lock it."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder of this user alone, and removes it when the body ends."""
    sweep_once(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix=NAME_PREFIX)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(locked(folder))
        yield Path(folder)


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Marks a folder as that of a living process during the body."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: its folders stay
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


@functools.cache
def sweep_once(place: str) -> None:
    """Removes the folders that killed processes of this user have left in a place; once in a process."""
    for entry in os.scandir(place):
        if entry.name.startswith(NAME_PREFIX) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid == os.getuid() and time.time() - found.st_mtime > FRESH_SECONDS:
                    _remove_unlocked(entry.path)


def _remove_unlocked(folder: str) -> None:
    """Removes a folder. Raises OSError if it is locked."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
