"""The thread that starts child processes.

The kernel ends a child with the thread that started it, and calls come from threads of pools, which end early.
"""

import contextlib
import os
import queue
import subprocess
import tempfile
import threading
from concurrent.futures import Future
from typing import Any

_lock = threading.Lock()
_orders: "queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str], dict[str, Any]]] | None" = None
_owner: int | None = None


def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Starts a process in an empty folder that is gone as soon as the process is in it."""
    global _orders, _owner
    with _lock:
        if _orders is None or _owner != os.getpid():  # a forked process has no such thread
            _orders, _owner = queue.SimpleQueue(), os.getpid()
            threading.Thread(target=_work, args=(_orders,), name="videolavit-children", daemon=True).start()
    done: Future[subprocess.Popen[bytes]] = Future()
    _orders.put((done, command, options))
    return done.result()


def _work(orders: "queue.SimpleQueue[tuple[Future[Any], list[str], dict[str, Any]]]") -> None:
    while True:
        done, command, options = orders.get()
        try:  # whatever goes wrong, the thread stays: others wait for it
            done.set_result(_started(command, options))
        except BaseException as error:
            done.set_exception(error)


def _started(command: list[str], options: dict[str, Any]) -> "subprocess.Popen[bytes]":
    folder = tempfile.mkdtemp(prefix="videolavit-")
    try:
        return subprocess.Popen(command, cwd=folder, **options)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
