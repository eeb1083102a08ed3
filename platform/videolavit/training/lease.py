"""Lease of a run's folder: one training at a time writes there."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LEASE = ".lease"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""Errors of a file system without locks, on which there is no lease."""


class FolderInUse(ValueError):
    """Another training, which is alive, writes to the folder."""


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[None]:
    """Holds a folder for this process in the body of the `with` statement. With the process the lease ends.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be written to.
    """
    with (folder / LEASE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUse(
                f"another training writes to {folder} ({file.read().strip()}); stop it, or choose another output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            if os.listdir(folder) == [LEASE]:  # the run never began
                (folder / LEASE).unlink()
