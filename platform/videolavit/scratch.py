"""Folders for what is in the making. A process that is killed leaves its own behind; the next one removes it.

A folder is locked as long as its process lives, so that no clock decides what is left behind.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
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
def shared_folder(key: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a folder that all processes of this user on this machine share which name the same key.

    One of them fills it, the others wait for it, and the last one removes it. What a process that was killed has not
    filled to the end is filled again.

    Args:
        key: Name of the content, which depends on it alone.
        fill: Writes the content into an empty folder.
    """
    place = Path(tempfile.gettempdir())
    sweep_once(str(place))
    folder = place / f"{NAME_PREFIX}{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    held = _joined(folder)
    if held is None:
        with scratch_folder() as own:
            fill(own)
            yield own
        return
    content, filled = folder / "content", folder / "filled"
    try:
        with (folder / "filling").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(content, ignore_errors=True)
                content.mkdir()
                fill(content)
                filled.touch()
        yield content
    finally:
        with contextlib.suppress(BlockingIOError):  # others use it
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _joined(folder: Path) -> int | None:
    """Descriptor of a folder that is locked together with others; None where it cannot be shared.

    That is on a file system without locks, and where another user has made a folder or a link of that name.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            return _open_together(folder)
        except FileNotFoundError:  # the last one that used it has removed it in between
            continue
        except OSError:
            return None


def _open_together(folder: Path) -> int:
    """Descriptor of a folder of this user, locked together with others. Raises OSError."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(held).st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        fcntl.flock(held, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(held), folder.stat(follow_symlinks=False)):
            raise FileNotFoundError(f"{folder} was made again")
    except OSError:
        os.close(held)
        raise
    return held


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
