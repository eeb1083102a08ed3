"""Calls in a child process that trusts nobody and that nobody trusts.

Native decoders crash, hang and are broken into by hostile input, and Python can stop none of it. The child is a plain
interpreter that imports the module of one function, so that it starts fast and takes little memory; it is replaced when
it hangs, crashes or does not keep to the protocol.
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar, TypeVarTuple

from .child_process import ChildProcess, Files
from .errors import CallFailed, NeedsTooMuchMemory, ProcessNotStarted, TimeLimitExceeded
from .layers import OPTIONAL_LAYERS, limit_processor_time
from .memory import large_limit, only_large_one, usual_limit

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


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
        self._child: ChildProcess[Result] | None = None
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
            ProcessNotStarted: this machine cannot start a process now.
        """
        deadline = time.monotonic() + time_limit
        try:
            try:
                return self._running().call(args, deadline)
            except NeedsTooMuchMemory:
                self.close()  # a process keeps what it has taken
            with self._large_child(deadline) as large:
                return large.call(args, deadline)
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

    def _running(self) -> ChildProcess[Result]:
        if self._child is None or not self._child.is_alive:
            self._child = self._start(usual_limit())
        return self._child

    @contextlib.contextmanager
    def _large_child(self, deadline: float) -> Iterator[ChildProcess[Result]]:
        """Child that may take what this node can give to one call; the only such one at a time."""
        with only_large_one(deadline, lambda: not self._given_up):
            self._child = large = self._start(large_limit())
            try:
                yield large
            finally:
                large.close()

    def _start(self, memory: int) -> ChildProcess[Result]:
        try:
            return ChildProcess(self._target, self._folder, memory, self._sources, self._errors)
        except OSError as error:
            raise ProcessNotStarted(f"no process could be started for it: {error}") from None


@functools.cache
def describe_layers(time_limit: float = 60.0) -> str:
    """Line for people about the layers of the sandbox that are active here, and those that this kernel lacks.

    Args:
        time_limit: Longest time of the start of a child, in seconds.
    """
    child = IsolatedFunction(limit_processor_time)
    try:
        active = child.layers(time_limit)
    except (CallFailed, OSError) as error:
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
            with self._large_child(time.monotonic() + time_limit) as large:
                yield from islice(large.items(args, time_limit), count, None)
        except TimeoutError:
            raise TimeLimitExceeded(f"nothing for {time_limit:g} s") from None


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
