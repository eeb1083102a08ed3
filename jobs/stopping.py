"""End of a command by a signal: at once, whatever its libraries wait for, or once it has saved."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Self

STOP_WITHIN = 8.0
"""Time that a command has to end by itself after a signal, in seconds."""

SIGNALLED = 128
"""Exit status of a process that a signal ended, less the number of the signal, as shells define it."""


class StopSignals:
    """SIGTERM and the first Ctrl-C, which ask a job to save and end. A second Ctrl-C ends it at once.

    Attributes:
        received: Number of the signal; None before one comes.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        # not through the console, in whose midst the signal may have come
        os.write(2, b"saving after this step; Ctrl-C ends at once\n")


@contextlib.contextmanager
def ends_on_signals() -> Iterator[None]:
    """Ends the process within ten seconds of the first SIGINT or SIGTERM in the body.

    The body sees them as exceptions, and may end in order. Ray waits for workers and connections in places that no
    exception reaches; the time is therefore taken in a thread, to which the kernel's signal comes through a pipe.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    on_term = signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_in_time, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, on_term)
        os.close(writing)


def _end(number: int, _: object) -> None:
    sys.exit(SIGNALLED + number)


def _end_in_time(signals: int) -> None:
    """Waits for a signal, and ends the process some time after it unless it has ended by then."""
    with os.fdopen(signals, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                time.sleep(STOP_WITHIN)
                os._exit(SIGNALLED + number[0])
