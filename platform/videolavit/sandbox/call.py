"""Calls in a child process that trusts nobody and that nobody trusts.

Native decoders crash, hang and are broken into by hostile input, and Python can stop none of it. The child is a plain
interpreter that imports the module of one function, so that it starts fast and takes little memory; it is replaced when
it hangs, crashes or does not keep to the protocol.
"""

import contextlib
import functools
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
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, Protocol, TypeVar, TypeVarTuple

from . import wire
from .channel import Channel, MessageKind, ProtocolError, pack
from .layers import OPTIONAL_LAYERS, limit_processor_time
from .memory import large_limit, only_large_one, usual_limit
from .starter import start

Arguments = TypeVarTuple("Arguments")
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


class CallFailed(Exception):
    """The process of a call did not finish it."""


class TimeLimitExceeded(CallFailed):
    """The call took longer than its limit, and its process was killed."""


class ProcessDied(CallFailed):
    """The process of the call ended: native code crashed, or another process killed it."""


class NeedsTooMuchMemory(CallFailed):
    """The call takes more memory than this machine can give to one."""


class ForeignError(Exception):
    """An error of a class that is not sent as itself. Its class has the name of that one."""


class IsolatedFunction(Generic[*Arguments, Result]):
    """A module-level function, called in a child process.

    The child imports the function's module and nothing else. Arguments are passed by position, to a type checker also
    those that have a default. Results are what `wire` can send.

    Args:
        function: Function.
        files: Files that are opened for the child, which has no file system and no network; None for functions that
            open none.
        errors: Errors that come back as themselves, with all classes below them; the message is their only argument.

    Raises:
        TypeError: a lambda, a closure, a method or a function of the main program: another process cannot import it.
    """

    def __init__(
        self,
        function: Callable[[*Arguments], Result],
        files: Files | None = None,
        errors: Sequence[type[Exception]] = (),
    ) -> None:
        self._target, self._folder = _import_name(function)
        self._sources, self._errors = files, tuple(errors)
        self._child: _Child[Result] | None = None
        self._given_up = False

    def __call__(self, *args: *Arguments, time_limit: float) -> Result:
        """Calls the function and returns its result, or raises what it raised.

        A call that fails for want of memory is made once more, when no other call on this node takes much.

        Args:
            time_limit: Time after which the child is killed, in seconds.

        Raises:
            TimeLimitExceeded: the call took longer.
            ProcessDied: the child ended without a result.
            NeedsTooMuchMemory: the call needs more memory than this node can give.
        """
        deadline = time.monotonic() + time_limit
        try:
            try:
                return self._running().call(args, deadline)
            except NeedsTooMuchMemory:
                self.close()  # a process keeps what it has taken
            with only_large_one(deadline, lambda: not self._given_up):
                self._child = large = self._start(large_limit())
                try:
                    return large.call(args, deadline)
                finally:
                    large.close()
        except TimeoutError:
            raise TimeLimitExceeded(f"not finished after {time_limit:g} s") from None

    def close(self) -> None:
        """Kills the child, if there is one."""
        if self._child is not None:
            self._child.close()

    def give_up(self) -> None:
        """Ends a call that another thread makes, and that nobody waits for any more. No other call may follow."""
        self._given_up = True
        child = self._child
        if child is not None:
            child.kill()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None before the first call."""
        return self._child.pid if self._child is not None and self._child.is_alive else None

    def layers(self, time_limit: float) -> Sequence[str]:
        """Names of the layers of the sandbox that are active here. Starts the child.

        Args:
            time_limit: Longest time of its start, in seconds.

        Raises:
            TimeoutError: it did not start in time.
            ProcessDied: it ended.
        """
        return self._running().layers(time.monotonic() + time_limit)

    def _running(self) -> "_Child[Result]":
        if self._child is None or not self._child.is_alive:
            self._child = self._start(usual_limit())
        return self._child

    def _start(self, memory: int) -> "_Child[Result]":
        return _Child(self._target, self._folder, memory, self._sources, self._errors)


@functools.cache
def describe_layers(time_limit: float = 60.0) -> str:
    """Line for people about the layers of the sandbox that are active here, and those that this kernel lacks.

    Args:
        time_limit: Longest time of the start of a child, in seconds.
    """
    child = IsolatedFunction(limit_processor_time)
    try:
        active = child.layers(time_limit)
    except (CallFailed, TimeoutError) as error:
        return f"the sandbox does not start: {error}"
    finally:
        child.close()
    missing = [name for name in OPTIONAL_LAYERS if not any(one.startswith(name) for one in active)]
    line = f"foreign files are decoded in a sandbox: {', '.join(active)}"
    return f"{line}; this system lacks {', '.join(missing)}" if missing else line


class IsolatedIterator(IsolatedFunction[*Arguments, Iterator[Result]]):
    """A module-level function that returns an iterator, called in a child process that makes its items one by one."""

    def __call__(self, *args: *Arguments, time_limit: float) -> Iterator[Result]:
        """Calls the function and yields the items of its iterator.

        Where it fails for want of memory, it is called once more as a single call is. Items that are out already are
        passed over: the function gives the same ones each time.

        Args:
            time_limit: Longest time until the next item, in seconds.

        Raises:
            TimeLimitExceeded: an item took longer.
            Exception: the other errors of a call, and what the function raised.
        """
        count = 0
        try:
            try:
                for item in self._running().items(args, time_limit):
                    count += 1
                    yield item
                return
            except NeedsTooMuchMemory:
                self.close()
            with only_large_one(time.monotonic() + time_limit, lambda: not self._given_up):
                self._child = large = self._start(large_limit())
                try:
                    yield from islice(large.items(args, time_limit), count, None)
                finally:
                    large.close()
        except TimeoutError:
            raise TimeLimitExceeded(f"nothing for {time_limit:g} s") from None


class _Child(Generic[Result]):
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


_CONTROLS = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
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


def _import_name(function: Callable[..., object]) -> tuple[str, str]:
    """Returns the name by which another process imports a function, `package.module:function`, and the folder in which
    its package lies."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module is None or name is None:
        raise TypeError(f"{function!r} is no function of a module, so another process cannot import it")
    if module == "__main__":
        raise TypeError(
            f"{name} is defined in the main program, which another process cannot import; move it to a module"
        )
    if getattr(sys.modules.get(module), name, None) is not function:
        raise TypeError(f"{module}.{name} is no module-level function, so another process cannot import it")
    package = sys.modules[module.partition(".")[0]]
    places = [*getattr(package, "__path__", []), *filter(None, [getattr(package, "__file__", None)])]
    return f"{module}:{name}", str(Path(places[0]).resolve().parent)


def _show(printed: IO[bytes]) -> None:
    """Shows what a child prints, without control characters, and reads the rest of it for nothing."""
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
