"""Attempts of a decoder that was broken into, as functions for a child process."""

import ctypes
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from videolavit.records.rows import PlanRow, Source, plan_rows_to
from videolavit.records.storage import StorageSettings, open_source
from videolavit.sandbox import serving

HEADER = struct.Struct("<BQQ")
ANSWER = 2


def attempt(what: Callable[[], object]) -> str:
    """`done`, or the name of the error."""
    try:
        what()
    except Exception as error:
        return type(error).__name__
    return "done"


def crimes(target: str) -> dict[str, str]:
    """Ends of crimes, by their names. The folder `target` has a file `secret`."""
    folder = Path(target)
    libc = ctypes.CDLL(None, use_errno=True)

    def refused(result: int) -> None:
        if result < 0:
            raise PermissionError(ctypes.get_errno())

    everything: dict[str, Callable[[], object]] = {
        "read a file": lambda: (folder / "secret").read_bytes(),
        "read the passwords": lambda: Path("/etc/passwd").read_bytes(),
        "list a folder": lambda: os.listdir(folder),
        "write a file": lambda: (folder / "new").write_text("x"),
        "write to a temporary file": lambda: Path("/tmp/videolavit-hostile").write_text("x"),
        "write here": lambda: Path("here").write_text("x"),
        "delete a file": lambda: (folder / "secret").unlink(),
        "change the mode of a file": lambda: (folder / "secret").chmod(0o777),
        "read the parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "read its own memory map": lambda: Path("/proc/self/maps").read_text(),
        "open a socket": lambda: socket.socket(),
        "run a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": os.fork,
        "kill the parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "kill everybody": lambda: os.kill(-1, signal.SIGKILL),
        "kill the group": lambda: os.kill(0, signal.SIGKILL),
        "trace the parent": lambda: refused(libc.ptrace(16, os.getppid(), 0, 0)),
        "become another user": lambda: os.setuid(12345),
        "leave the sandbox": lambda: refused(libc.unshare(0x10000000)),
        "make a large file": lambda: os.ftruncate(os.memfd_create("large"), 1 << 30),
        "raise its memory": lambda: __import__("resource").setrlimit(9, (-1, -1)),
    }
    return {name: attempt(crime) for name, crime in everything.items()}


def surroundings() -> dict[str, Any]:
    """Environment, working folder and path of the process."""
    return {"environment": dict(os.environ), "path": sys.path, "in folder": attempt(lambda: os.listdir("."))}


def limits() -> dict[str, tuple[int, int]]:
    """Limits of the process, soft and hard, and its processor time so far, in seconds."""
    names = ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_CPU")
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {name: resource.getrlimit(getattr(resource, name)) for name in names}
    return found | {"used": (int(used.ru_utime + used.ru_stime), 0)}


def start_threads(count: int) -> int:
    """Starts threads, as decoders do."""
    threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return count


def raw(parts: list[bytes], then: str = "sleep") -> str:
    """Writes bytes to the parent in place of an answer."""
    assert serving.parent is not None
    end = serving.parent._channel._end
    for part in parts:
        end.sendall(part)
    if then == "sleep":
        time.sleep(60)
    return "honest"


def smuggle(parts: list[bytes]) -> None:
    """Writes bytes to the parent in place of an answer, with a file descriptor beside them."""
    assert serving.parent is not None
    for part in parts:
        socket.send_fds(serving.parent._channel._end, [part], [1])
    time.sleep(60)


def write_to_the_log(data: bytes) -> None:
    os.write(2, data)


def message(number: int, body: bytes, kind: int = ANSWER, length: int | None = None) -> bytes:
    return HEADER.pack(kind, number, len(body) if length is None else length) + body


class Bomb:
    """Runs code wherever it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def bomb() -> bytes:
    return pickle.dumps((True, Bomb()))


def allocate(count: int) -> int:
    return int(np.zeros(count, np.uint8)[-1]) + count


def allocate_and_fail(count: int) -> None:
    kept = np.zeros(count, np.uint8)
    raise ValueError(f"kept {len(kept)}")


def read(address: str, about: str = "") -> bytes:
    """Opens an address by the parent, which is to be asked about another one only."""
    with open_source(address[::-1] if about else address, StorageSettings()) as file:
        return file.read()


def read_of_row(turned: str, row: Source) -> bytes:
    """Opens an address that the call is not about, though a text of its row is that address."""
    return read(turned, about=row.source)


def read_parts(address: str) -> list[bytes]:
    """Parts of a file, from several threads and out of order."""
    with open_source(address, StorageSettings()) as file:
        parts = []
        for place in (100, 0, -50):
            file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
            parts.append(file.read(40))
        return parts


def stray_sources(source: Source, *rest: Any) -> list[Source]:
    """Content of a container, in place of which a file of somebody else is named."""
    return [Source(source="a.txt", url="/etc/passwd", kind="text")]


def stray_captions(source: Source, *rest: Any) -> list[Source]:
    return [replace(source, kind="image", text_url="/etc/passwd")]


def stray_kinds(source: Source, *rest: Any) -> list[Source]:
    return [replace(source, kind="strange")]


def stray_plan(source: Source, *rest: Any) -> Any:
    return plan_rows_to([PlanRow(source="a.txt", url="/etc/passwd", kind="text", sample_id="0")])


def no_plan(source: Source, *rest: Any) -> list[int]:
    return [1]


def busy(seconds: float) -> None:
    """Takes long."""
    time.sleep(seconds)


def count(items: int, size: int, pause: float) -> Iterator[bytes]:
    """Numbers, of some bytes each."""
    for number in range(items):
        time.sleep(pause)
        yield number.to_bytes(size)


def count_and_allocate(items: int, size: int) -> Iterator[int]:
    """Numbers, the last one while some bytes are held."""
    yield from range(items)
    held = bytes(size)
    yield items
    del held


def announce_and_hold(text: str) -> None:
    """Tells its process id, then loops in native code without end, holding the interpreter's lock."""
    os.write(2, f"{text}{os.getpid()}\n".encode())
    pattern = ctypes.create_string_buffer(b"x" * 1_000_000)
    while True:
        bytes(pattern).count(b"y")


def announce_and_sleep(text: str) -> None:
    os.write(2, f"{text}{os.getpid()}\n".encode())
    time.sleep(600)
