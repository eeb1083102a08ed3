"""Calls in a child process, which is replaced when it hangs or crashes.

Native decoders crash and hang on hostile input, and Python can catch neither. The child is a plain interpreter that
imports the module of one function, so that it starts fast and takes little memory.
"""

import contextlib
import fcntl
import gc
import importlib
import os
import pickle
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Generic, TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

_LENGTH = struct.Struct("<Q")
_PIPE_SIZE = 1 << 20
"""Size of a pipe, in bytes: about one result. With the default of 64 KiB both sides wake up far more often."""

MEMORY_LIMIT = 4 << 30
"""Address space of a child, in bytes. A larger allocation fails in the child, and ends no other process."""

_CHILD_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # callers run several children; idle BLAS threads only spin
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_TRIM_THRESHOLD_": "1000000",  # large buffers go back to the system when they are freed
    "MALLOC_MMAP_THRESHOLD_": "1000000",
}


class TimeLimitExceeded(Exception):
    """The call took longer than its limit, and its process was killed."""


class ProcessDied(Exception):
    """The process of the call ended: native code crashed, or another process killed it."""


class IsolatedFunction(Generic[*Arguments, Result]):
    """A module-level function, called in a child process.

    The child imports the function's module and nothing else. Arguments are passed by position, to a type checker also
    those that have a default; they and the result are pickled on a private pipe.

    Raises:
        TypeError: a lambda, a closure, a method or a function of the main program: another process cannot import it.
    """

    def __init__(self, function: Callable[[*Arguments], Result]) -> None:
        self._target = _import_name(function)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, *args: *Arguments, time_limit: float) -> Result:
        """Calls the function and returns its result, or raises what it raised.

        Args:
            time_limit: Time after which the child is killed, in seconds.

        Raises:
            TimeLimitExceeded: the call took longer.
            ProcessDied: the child ended without a result.
        """
        process = self._running()
        deadline = time.monotonic() + time_limit
        try:
            _send(process.stdin, args)  # type: ignore[arg-type]
            descriptor = process.stdout.fileno()  # type: ignore[union-attr]
            succeeded, value = _receive(partial(_read_until, descriptor, deadline))
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
        result: Result = value
        return result

    def close(self) -> None:
        """Kills the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int | None:
        """Process id of the child; None before the first call."""
        return self._process.pid if self._process else None

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            path = os.pathsep.join(entry for entry in sys.path if entry)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "videolavit.isolation", self._target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | _CHILD_ENVIRONMENT | {"PYTHONPATH": path},
            )
            with contextlib.suppress(OSError):  # the system limits the number of large pipes of a user
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)  # type: ignore[arg-type]
        return self._process


def _import_name(function: Callable[..., object]) -> str:
    """Returns the name by which another process imports a function: `package.module:function`."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None:
        raise TypeError(f"{function!r} is no function of a module, so another process cannot import it")
    if module == "__main__":
        raise TypeError(
            f"{name} is defined in the main program, which another process cannot import; move it to a module"
        )
    if getattr(sys.modules.get(module), name, None) is not function:
        raise TypeError(f"{module}.{name} is no module-level function, so another process cannot import it")
    return f"{module}:{name}"


def _cause(status: int) -> str:
    if status < 0:
        return f"its process was ended by signal {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _send(stream: BinaryIO, value: Any) -> None:
    """Writes a message: the number of its parts, and the length and bytes of each. Large buffers are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    stream.write(_LENGTH.pack(len(parts)))
    for part in parts:
        stream.write(_LENGTH.pack(part.nbytes))
        stream.write(part)
    stream.flush()


def _receive(read: Callable[[int], bytearray]) -> Any:
    """Reads a message with `read(size)`. It comes from the parent or the child, so that unpickling it is safe."""
    (count,) = _LENGTH.unpack(read(_LENGTH.size))
    head, *buffers = [read(*_LENGTH.unpack(read(_LENGTH.size))) for _ in range(count)]
    return pickle.loads(head, buffers=buffers)  # noqa: S301


def _read_until(descriptor: int, deadline: float, size: int) -> bytearray:
    """Reads exactly `size` bytes.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side closed the pipe.
    """
    data = bytearray(size)
    filled = 0
    while filled < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        count = os.readv(descriptor, [memoryview(data)[filled:]])
        if not count:
            raise EOFError
        filled += count
    return data


def _serve(target: str) -> None:
    """Runs the child: it serves calls until the parent closes the pipe or ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries that print must not write into the pipe of results
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(sys.stdin.buffer, requests), daemon=True).start()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    gc.freeze()  # later collections skip the objects of the imports, which makes them cheap
    while True:
        args = requests.get()
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, error)
        _send(answers, answer)
        del args, answer
        gc.collect()  # closed decoders and their large frames stay in reference cycles


def _read_requests(stream: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    def read(size: int) -> bytearray:
        data = stream.read(size)
        if len(data) < size:
            os._exit(0)
        return bytearray(data)

    while True:
        requests.put(_receive(read))


if __name__ == "__main__":
    _serve(sys.argv[1])
