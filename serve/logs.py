"""Log of the ingress, and its way to the console of the command that started the service on the same machine."""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from videolavit.scratch import scratch_folder

from .failures import root_cause

LONGEST_LINE = 8192
"""Bytes of a line that are kept."""

log = logging.getLogger("videolavit.serve")


@dataclass(frozen=True)
class RequestLine:
    """Log line of a request, without its content.

    Args:
        path: Path without the query, which may hold secrets.
        route: Pattern of the path.
        status: HTTP status; 499 if the client left before the answer.
        reason: Code of the error, if the answer is one.
        owner: Owner of the API key.
    """

    request_id: str
    method: str
    path: str
    route: str
    status: int
    seconds: float
    reason: str | None
    owner: str | None

    def __str__(self) -> str:
        """The line in words, for a console."""
        who, why = self.owner or "-", f" {self.reason}" if self.reason else ""
        took = f"{self.seconds * 1000:.0f} ms"
        return f"{self.method} {self.path} {self.status} {took} {who} {self.request_id or '-'}{why}"


def start_log(console: str | None) -> None:
    """Writes the log of the service to standard error, beside the log of Serve, and to a console.

    Args:
        console: Folder that `log_lines` gave; None for no console.
    """
    if log.handlers:
        return
    log.setLevel(logging.INFO)
    log.propagate = False
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(JsonFormatter())
    log.addHandler(stderr)
    if console is not None:
        with contextlib.suppress(OSError):  # another machine
            log.addHandler(ConsoleHandler(console))


class JsonFormatter(logging.Formatter):
    """Formats the line of a request as JSON, and other records as their message."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, RequestLine):
            return json.dumps(asdict(record.msg))
        return super().format(record)


@contextlib.contextmanager
def log_lines(on_line: Callable[[str], None]) -> Iterator[str]:
    """Yields a folder for `ConsoleHandler`, and calls a function with each line, in a thread of its own."""
    with scratch_folder() as scratch, _unix_socket() as receiver:
        folder = str(scratch)
        opened = os.open(folder, os.O_PATH)
        address = _address(opened)
        receiver.bind(address)

        def read() -> None:
            while line := receiver.recv(LONGEST_LINE):
                on_line(line.decode(errors="replace"))

        thread = threading.Thread(target=read, name="log lines", daemon=True)
        thread.start()
        try:
            yield folder
        finally:
            with _unix_socket() as end:
                end.sendto(b"", address)
            thread.join()
            os.close(opened)


class ConsoleHandler(logging.Handler):
    """Sends records to the reader of `log_lines`, each as one line: the time, the message, the reason of an error.

    A line is dropped where nobody reads, or not fast enough: a console that is stopped must not stop the service.
    Tracebacks are in the log of the ingress.

    Args:
        folder: Folder that `log_lines` gave.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._address, self._socket = _address(os.open(folder, os.O_PATH)), _unix_socket()
        self._socket.setblocking(False)
        self._clock = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self._clock.formatTime(record, '%H:%M:%S')} {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            line += f": {type(root_cause(record.exc_info[1])).__name__}"  # messages may hold prompts
        with contextlib.suppress(OSError):
            self._socket.sendto(line.encode(errors="replace")[:LONGEST_LINE], self._address)


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def _address(folder: int) -> str:
    """Address of the socket in an open folder, which is short however long the folder's path is."""
    return f"/proc/self/fd/{folder}/log"
