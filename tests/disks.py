"""Disks of their own for tests: small, full or read-only."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def resize(folder: Path, size: str) -> None:
    """Changes the size of a disk from `disk`, such as `64k`."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextlib.contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """Mounts a disk in memory on a folder, which is made if missing; skips the test where only root could.

    Args:
        options: Options of the mount, such as `size=64k` or `ro`.
    """
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can make a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
