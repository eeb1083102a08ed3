"""A child process as its parent sees it: how it is started, what it is sent, what it is served, and how it ends."""

import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, Protocol, TypeVar

from . import wire
from .channel import Channel, MessageKind, ProtocolError, pack
from .errors import ForeignError, NeedsTooMuchMemory, ProcessDied
from .starter import start

Result = TypeVar("Result")

CHILD = Path(__file__).with_name("child.py")

MAX_ANSWER = 2 << 30
"""Longest answer that a parent takes, in bytes."""

MAX_HANDLES = 64
"""Files that a parent keeps open for its child."""

MAX_READ = 64 << 20
"""Bytes that a parent reads for its child at a time."""

MAX_MESSAGE = 2000
"""Longest message of an error that is kept, in characters."""

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",  # callers run several children; idle BLAS threads only spin
    "OMP_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "1000000",  # large buffers go back to the system when they are freed
    "MALLOC_MMAP_THRESHOLD_": "1000000",
}
"""All that a child sees of its environment, beside where the system finds libraries and time zones."""

MAX_SHOWN = 1 << 16
"""Bytes of what a child prints that are shown. What is foreign may try to fill the log."""

_HANDED_ON = ("LD_LIBRARY_PATH", "TZ")


class Files(Protocol):
    """Files that a parent opens for its child."""

    def may_open(self, address: str, arguments: Sequence[Any]) -> bool:
        """Decides whether a call with these arguments needs the file that its child asks for."""

    def open(self, address: str) -> BinaryIO:
        """Opens a file, seekable. Raises OSErrors and MediaErrors, which the child gets."""


class ChildProcess(Generic[Result]):
    """A child process, and the files that are open for it.

    Args:
        memory: Largest address space of the process, in bytes.
    """

    def __init__(
        self, target: str, folder: str, memory: int, sources: Files | None, errors: tuple[type[Exception], ...]
    ) -> None:
        self._sources, self._errors = sources, errors
        self._files: dict[int, BinaryIO] = {}
        self._number = 0
        self._storage: ThreadPoolExecutor | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [str(number) for number in (theirs.fileno(), os.getpid(), memory)]
            self._process = start(
                [sys.executable, "-I", "-B", str(CHILD), *numbers, folder, target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in _HANDED_ON if name in os.environ} | _ENVIRONMENT,
            )
        threading.Thread(target=_show, args=(self._process.stderr,), daemon=True).start()
        self._channel = Channel(ours, MAX_ANSWER)
        self._layers: Sequence[str] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kills the process; whoever waits for its answer is told."""
        self._process.kill()

    def close(self) -> None:
        """Kills the process, and closes all that belongs to it."""
        self._process.kill()
        self._process.wait()
        self._channel.close()
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._storage is not None:
            self._storage.shutdown(wait=False)

    def layers(self, deadline: float) -> Sequence[str]:
        """Names of the active layers of the sandbox, which the process tells when it has started."""
        with self._ending_at_faults():
            if self._layers is None:
                kind, number, data, _ = self._channel.receive(deadline)
                if (kind, number) != (MessageKind.ANSWER, 0):
                    raise ProtocolError("no greeting")
                self._layers = [str(name) for name in wire.decode(data)]
        return self._layers

    def call(self, arguments: Sequence[Any], deadline: float) -> Result:
        """Calls the function. Any fault but an error of the function itself ends the process.

        Raises:
            TimeoutError: the deadline passed.
            ProcessDied: the process ended, or does not keep to the protocol.
            NeedsTooMuchMemory: the function failed where little memory was left.
            Exception: what the function raised.
        """
        with self._ending_at_faults():
            self._send(arguments, deadline)
            kind, value = self._next(arguments, deadline)
            if kind == MessageKind.ITEM:
                raise ProtocolError("an item in place of an answer")
            error = self._error(value) if kind == MessageKind.ERROR else None
        if error is not None:
            raise error
        result: Result = value
        return result

    def items(self, arguments: Sequence[Any], seconds: float) -> Iterator[Any]:
        """Calls the function, which returns an iterator, and yields its items as they come. The process makes the next
        ones meanwhile, as far as the buffer of the channel goes; it ends if not all are taken.

        Args:
            seconds: Longest time until the next item.

        Raises:
            Exception: as `call`.
        """
        with self._ending_at_faults():
            self._send(arguments, time.monotonic() + seconds, seconds)
            while True:
                kind, value = self._next(arguments, time.monotonic() + seconds)
                if kind != MessageKind.ITEM:
                    break
                yield value
            error = self._error(value) if kind == MessageKind.ERROR else None
        if error is not None:
            raise error

    @contextlib.contextmanager
    def _ending_at_faults(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self._process.kill()  # perhaps only its end of the channel is closed
            cause = _cause(self._process.wait())
            self.close()
            raise ProcessDied(cause) from None
        except (ProtocolError, wire.WireError) as problem:
            self.close()
            raise ProcessDied(f"its process does not keep to the protocol: {problem}") from None
        except BaseException:
            self.close()
            raise

    def _send(self, arguments: Sequence[Any], deadline: float, limit: float | None = None) -> None:
        """Sends a call, after the greeting of a new process.

        Args:
            limit: Processor time of the call, or of each of its items, in seconds; None for what is left.
        """
        self.layers(deadline)
        self._number += 1
        buffers: list[pickle.PickleBuffer] = []
        limit = deadline - time.monotonic() if limit is None else limit
        head = pickle.dumps((tuple(arguments), limit), protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
        sizes = pack([part.nbytes for part in parts])
        self._channel.send(MessageKind.CALL, self._number, [sizes, *parts], deadline)

    def _next(self, arguments: Sequence[Any], deadline: float) -> tuple[MessageKind, Any]:
        """Serves the child's requests until its next item, answer or error."""
        while True:
            kind, number, data, descriptors = self._channel.receive(deadline)
            for descriptor in descriptors:  # a child has none to give
                os.close(descriptor)
            if number != self._number:
                raise ProtocolError(f"a message for call {number} in call {self._number}")
            value = wire.decode(data)
            if kind == MessageKind.REQUEST:
                self._serve(value, arguments, deadline)
            elif kind in (MessageKind.ITEM, MessageKind.ANSWER, MessageKind.ERROR):
                return kind, value
            else:
                raise ProtocolError(f"a message of kind {kind}")

    # ---- files for the child --------------------------------------------------------------------------------------

    def _serve(self, request: Any, arguments: Sequence[Any], deadline: float) -> None:
        """Replies to a request. Storage may be slow, so that it works in a thread that can be left behind."""
        try:
            left, what, *details = request
            works: dict[str, Callable[..., tuple[bytes, int | None]]] = {"open": self._open, "read": self._read}
            work = works[what]
            for handle in left:
                self._files.pop(handle).close()
        except (ValueError, TypeError, KeyError) as problem:
            raise ProtocolError(f"a request that does not exist: {problem}") from None
        if self._storage is None:
            self._storage = ThreadPoolExecutor(1, thread_name_prefix="videolavit-storage")
        future = self._storage.submit(work, *details, *([arguments] if what == "open" else []))
        try:
            reply, descriptor = future.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            raise TimeoutError from None
        except ProtocolError:
            raise
        except Exception as error:
            self._channel.send(MessageKind.REFUSAL, self._number, [_picklable(error)], deadline)
            return
        try:
            self._channel.send(MessageKind.REPLY, self._number, [reply], deadline, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open(self, address: Any, arguments: Sequence[Any]) -> tuple[bytes, int | None]:
        """Opens a file; a local one is handed over by its descriptor."""
        if self._sources is None or not isinstance(address, str) or not self._sources.may_open(address, arguments):
            raise PermissionError("the call is not about this file")
        if len(self._files) >= MAX_HANDLES:
            raise ProtocolError("too many open files")
        file = self._sources.open(address)
        try:
            descriptor = os.dup(file.fileno())
        except OSError:  # a file of a remote storage
            handle = max(self._files, default=0) + 1
            self._files[handle] = file
            return pickle.dumps((handle, file.seek(0, os.SEEK_END))), None
        file.close()
        return b"", descriptor

    def _read(self, handle: Any, offset: Any, size: Any) -> tuple[bytes, int | None]:
        if handle not in self._files or type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
            raise ProtocolError("a request for bytes of no file")
        file = self._files[handle]
        file.seek(offset)
        return file.read(min(size, MAX_READ)), None

    # ---- errors ---------------------------------------------------------------------------------------------------

    def _error(self, answer: Any) -> Exception:
        """The error that the child tells of, of the first of its classes that is known here."""
        try:
            names, message, is_short = answer["names"], answer["message"], answer["is_short_of_memory"]
            if not isinstance(message, str) or not all(_NAME.fullmatch(name) for name in names):
                raise ValueError("an error without a name")
        except (TypeError, KeyError, ValueError) as problem:
            raise ProtocolError(str(problem)) from None
        if is_short:
            return NeedsTooMuchMemory(f"decoding it takes more memory than there is for one file: {message}")
        known = {kind.__name__: kind for kind in _with_all_below(self._errors)}
        kind: type[Exception] = known.get(names[0]) or type(str(names[0]), (ForeignError,), {})
        return kind(message[:MAX_MESSAGE])


_CONTROLS = re.compile(rb"[^\t\n\x20-\x7e]")
"""Bytes that are not shown: some characters of UTF-8 control a terminal too, and a piece may end within one."""

_NAME = re.compile(r"[A-Za-z_]\w{0,99}")


def _with_all_below(kinds: Sequence[type[Exception]]) -> Iterator[type[Exception]]:
    for kind in kinds:
        yield kind
        yield from _with_all_below(kind.__subclasses__())


def _picklable(error: Exception) -> bytes:
    """An error of a storage as it goes to the child, which believes its parent."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301, our own
    except Exception:
        return pickle.dumps(OSError(str(error)))
    return data


def _show(printed: IO[bytes]) -> None:
    """Shows what a child prints, in ASCII without control characters, and reads the rest of it for nothing."""
    left = MAX_SHOWN
    with printed, contextlib.suppress(OSError, ValueError):
        while data := printed.read1(1 << 12):  # type: ignore[attr-defined]
            shown = _CONTROLS.sub(b"?", data[:left])
            left -= len(shown)
            if shown:
                os.write(2, shown)


def _cause(status: int) -> str:
    if status < 0:
        return f"its process was ended by signal {signal.Signals(-status).name}"
    return f"its process ended with status {status}"
