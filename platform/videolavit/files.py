"""Local files and folders that appear whole or not at all.

Content is written under a temporary name beside the target and put on the disk; then the final name is given in one
step. After a crash or a power failure the target is as it was before, or complete.
"""

import contextlib
import functools
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

ABANDONED_SECONDS = 86400.0
"""Age from which what lies beside a target is left by a process that was killed, in seconds."""

_UNUSED_NAME = re.compile(r"\..+\.[0-9a-f]{32}(\..+)?")


@contextlib.contextmanager
def write_beside(*targets: Path) -> Iterator[list[Path]]:
    """Yields a path beside each target. Files and folders written there replace the targets when the body ends.

    If the body raises, the targets stay as they are. Missing folders are created, and removed again if they stay empty.
    Files inside a folder are not flushed: a writer whose folder must survive a power failure calls `flush` on each.
    """
    parents = (folder for target in targets for folder in target.parents)
    new_folders = [folder for folder in parents if not folder.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, new_folders)
        unfinished = [stack.enter_context(unused_path(target, target.suffix)) for target in targets]
        yield unfinished
        for finished, target in zip(unfinished, targets, strict=True):
            publish(finished, target)


@contextlib.contextmanager
def unused_path(target: Path, suffix: str = "") -> Iterator[Path]:
    """Yields a hidden path in the target's folder that nothing uses, and removes what is there when the body ends.

    Args:
        target: File or folder to be.
        suffix: End of the name, for writers that go by it. Without one, no listing by suffix finds the path.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    path = target.with_name(f".{target.name}.{uuid4().hex}{suffix}")
    try:
        yield path
    finally:
        remove(path)


@functools.cache
def _sweep(folder: Path) -> None:
    """Removes what processes of this user that were killed have left in a folder; once in a process."""
    for entry in os.scandir(folder):
        if _UNUSED_NAME.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid == os.getuid() and time.time() - found.st_mtime > ABANDONED_SECONDS:
                    remove(Path(entry.path))


def publish(finished: Path, target: Path) -> None:
    """Renames a finished file or folder to its final name; a file or folder of that name gives way."""
    flush(finished)
    if finished.is_dir() and target.is_dir():  # a folder cannot be renamed over one that has content
        with unused_path(target) as old:
            target.rename(old)
            finished.rename(target)
    else:
        finished.replace(target)
    _flush_names(target)


def publish_new(finished: Path, target: Path) -> bool:
    """Gives a finished file its final name unless the name is taken.

    Returns:
        False if the name was taken; that file is left as it is.
    """
    flush(finished)
    try:
        os.link(finished, target)
    except FileExistsError:
        return False
    _flush_names(target)
    return True


def flush(path: Path) -> None:
    """Puts a file's content, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Puts a folder with all that is in it on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its content, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # the folder is not empty, or was never made
            folder.rmdir()


def _flush_names(target: Path) -> None:
    """Puts the target's name on the disk, and that of its folder, which may be new."""
    flush(target.parent)
    flush(target.parent.parent)
