"""Heartbeat of a process that works on video jobs, sent by a child process.

The child is not held up by anything that its parent does: a blocked event loop, busy threads, or native code that keeps
the interpreter lock. It ends with its parent, whichever way the parent ends, because the parent holds the other end of
its standard input.
"""

import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys

from sqlalchemy.exc import SQLAlchemyError

from .store import JobStore

BEATS_PER_LEASE = 5
"""Heartbeats sent within the time of one lease."""

log = logging.getLogger("videolavit.serve")


class Heartbeat:
    """Child process that reports to the job store that this process is alive.

    Args:
        store: Job store; the child opens a connection of its own to it.
        lease_seconds: Time that each heartbeat is valid for, in seconds.
    """

    def __init__(self, store: JobStore, lease_seconds: float) -> None:
        self.holder = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(8)}"
        self._store, self._lease_seconds = store, lease_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def keep_running(self) -> None:
        """Starts the child, or replaces one that has ended."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            log.warning("the heartbeat process ended with status %s; starting another", self._process.returncode)
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
        )
        # on the pipe, because a URL may hold a password and every user can read command lines
        arguments = {"url": self._store.url, "holder": self.holder, "lease_seconds": self._lease_seconds}
        try:
            self._process.stdin.write(json.dumps(arguments).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            return  # the next call replaces it

    def stop(self) -> None:
        """Ends the child and takes this process off the list of those that hold jobs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._store.leave(self.holder)


def main() -> None:
    """Sends heartbeats until the parent's end of standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    parent = os.getppid()
    arguments = json.loads(sys.stdin.readline())
    holder, lease_seconds = arguments["holder"], arguments["lease_seconds"]
    store: JobStore | None = None
    while os.getppid() == parent:
        try:
            store = store or JobStore(arguments["url"])
            store.beat(holder, lease_seconds)
        except SQLAlchemyError as error:
            log.warning("a heartbeat could not be stored: %s", type(error).__name__)
        if select.select([sys.stdin], [], [], lease_seconds / BEATS_PER_LEASE)[0]:
            return


if __name__ == "__main__":
    main()
