"""Calls that may hang or kill their process, made in a child process that is replaced when that happens.

Native decoders crash and hang on hostile input, and neither can be caught in Python. The child is a plain interpreter
that imports one function, so that it starts fast and holds nothing but what decoding needs.
"""

import importlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 20


class TimeLimitExceeded(Exception):
    """The call took longer than its limit; its process was ended."""


class ProcessDied(Exception):
    """The call ended its process: a crash in native code, or a kill from outside."""


class IsolatedFunction:
    """A module-level function, called in a child process.

    Args:
        target: `"package.module:function"`. Arguments and results are pickled on a private pipe.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, *args: Any, time_limit: float) -> Any:
        """Calls the function and returns its result, or raises what it raised.

        Args:
            time_limit: Seconds after which the child is killed.

        Raises:
            TimeLimitExceeded: it was.
            ProcessDied: the child ended without an answer.
        """
        process = self._running()
        deadline = time.monotonic() + time_limit
        try:
            _send(process.stdin, args)  # type: ignore[arg-type]
            succeeded, value = _receive(process.stdout, deadline)  # type: ignore[arg-type]
        except TimeoutError:
            self.close()
            raise TimeLimitExceeded(f"not finished after {time_limit:g} s") from None
        except (EOFError, BrokenPipeError):
            process.kill()
            raise ProcessDied(_cause(process.wait())) from None
        finally:
            if process.poll() is not None:
                self._process = None
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """Ends the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int | None:
        """Of the child, or None before the first call."""
        return self._process.pid if self._process else None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "videolavit.isolation", self._target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        return self._process


def _cause(status: int) -> str:
    if status < 0:
        return f"its process was ended by signal {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _send(stream: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value, protocol=5)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: BinaryIO, deadline: float) -> Any:
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size, deadline))
    return pickle.loads(_read_exactly(stream, length, deadline))  # noqa: S301 - written by our own child


def _read_exactly(stream: BinaryIO, size: int, deadline: float) -> bytes:
    data = bytearray()
    descriptor = stream.fileno()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        chunk = os.read(descriptor, min(_CHUNK, size - len(data)))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _serve(target: str) -> None:
    """The child: answers requests until the parent's end of the pipe closes, however the parent ended."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    while True:
        args = requests.get()
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, error)
        _send(answers, answer)


def _read_requests(stream: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    while header := stream.read(_LENGTH.size):
        requests.put(pickle.loads(stream.read(_LENGTH.unpack(header)[0])))  # noqa: S301 - written by our own parent
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
