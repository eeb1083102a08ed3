"""The child's side: calls from the parent, and files that the parent opens for it."""

import gc
import importlib
import io
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from . import wire
from .channel import Channel, MessageKind, unpack
from .layers import limit_processor_time

_LARGEST = 1 << 62
"""Bound on the length of a message from the parent, which is believed."""


class Parent:
    """The parent, as a child asks it for files; by one thread at a time.

    Args:
        channel: Messages to and from it.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self.number = 0
        self.left: list[int] = []
        """Files that are not needed any more. The next request says so: finalizers may run at any time."""

    def open(self, address: str) -> BinaryIO:
        """Opens a file that the call is about.

        Raises:
            OSError: the storage's, or a PermissionError for a file that the call is not about.
        """
        data, descriptors = self.ask("open", address)
        if descriptors:
            return os.fdopen(descriptors[0], "rb", buffering=0)
        handle, size = pickle.loads(data)  # noqa: S301, from the parent
        return _FileOfParent(self, handle, size)  # type: ignore[return-value]

    def ask(self, *request: Any) -> tuple[memoryview, list[int]]:
        """Sends a request. Returns the bytes of the reply, and its file descriptors.

        Raises:
            Exception: the parent refuses, with the reason.
        """
        with self._lock:
            left, self.left = self.left, []
            self._channel.send(MessageKind.REQUEST, self.number, wire.encode([left, *request]))
            kind, _, data, descriptors = self._channel.receive()
        if kind == MessageKind.REFUSAL:
            raise pickle.loads(data)  # noqa: S301, from the parent
        return data, descriptors


parent: Parent | None = None
"""The parent of this process, if it is a child; None in all other processes."""


class _FileOfParent(io.RawIOBase):
    """A file of a remote storage, whose bytes the parent reads."""

    def __init__(self, parent: Parent, handle: int, size: int) -> None:
        self._parent, self._handle, self._size, self._position = parent, handle, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = bytes(self._parent.ask("read", self._handle, self._position, wanted)[0])
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._parent.left.append(self._handle)
        super().close()


def serve(descriptor: int, memory: int, target: str, status: int | None, layers: list[str]) -> None:
    """Serves calls until the parent ends.

    Args:
        descriptor: Number of the socket.
        memory: Largest address space of this process, in bytes.
        target: Function, as `package.module:function`.
        status: Open file in which the kernel tells the memory of this process.
        layers: Names of the active layers of the sandbox.
    """
    global parent
    channel = Channel(socket.socket(fileno=descriptor), _LARGEST)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    parent = Parent(channel)
    much = _largest(status) + (memory - _largest(status)) // 2
    channel.send(MessageKind.ANSWER, 0, wire.encode(layers))
    gc.freeze()  # later collections skip the objects of the imports, which makes them cheap
    while True:
        try:
            _, number, data, _ = channel.receive()
        except (EOFError, OSError):
            os._exit(0)
        parent.number = number
        for kind, answer in _answers(function, data, status, much):
            channel.send(kind, number, answer)
        del data, answer
        gc.collect()  # closed decoders and their large frames stay in reference cycles


def _answers(
    function: Any, data: memoryview, status: int | None, much: int
) -> Iterator[tuple[MessageKind, list[memoryview]]]:
    """Result of a call, or the items of an iterator and nothing; or an error.

    Args:
        much: Address space, in bytes, from which on an error may come from a want of memory, whatever it says.
    """
    try:
        head, *buffers = unpack(data)
        arguments, time_limit = pickle.loads(head, buffers=buffers)  # noqa: S301, from the parent
        limit_processor_time(time_limit)
        result = function(*arguments)
        if isinstance(result, Iterator):
            for item in result:
                yield MessageKind.ITEM, wire.encode(item)
                limit_processor_time(time_limit)
            result = None
        yield MessageKind.ANSWER, wire.encode(result)
    except Exception as error:
        short = isinstance(error, MemoryError) or _largest(status) > much
        names = [one.__name__ for one in type(error).__mro__]
        message = str(error) if len(error.args) < 2 else repr(error.args)
        yield MessageKind.ERROR, wire.encode({"names": names, "message": message, "is_short_of_memory": short})


def _largest(status: int | None) -> int:
    """Largest address space that this process has had, in bytes; 0 if the system does not say."""
    if status is None:
        return 0
    lines = os.pread(status, 1 << 14, 0).splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(b"VmPeak:")), 0)
