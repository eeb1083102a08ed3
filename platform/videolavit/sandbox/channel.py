"""Messages between a parent and its child process, on a private pair of sockets.

A message is its kind, the number of the call that it belongs to, its length, and its bytes.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct("<BQQ")
_SOCKET_BUFFER = 1 << 20
"""Size of the sockets' buffers, in bytes: about one result. With smaller ones both sides wake up far more often."""

_PIECE = 1 << 24
"""Bytes by which a buffer grows while a message arrives, so that an announced length alone takes no memory."""

MAX_FILES = 1
"""File descriptors that come with a message, at most."""


def pack(sizes: Sequence[int]) -> bytes:
    """Lengths of the parts of a call, in front of them."""
    return struct.pack(f"<Q{len(sizes)}Q", len(sizes), *sizes)


def unpack(data: memoryview) -> list[memoryview]:
    """Parts of a call."""
    (count,) = struct.unpack("<Q", data[:8])
    place, parts = 8 * (count + 1), []
    for size in struct.unpack(f"<{count}Q", data[8:place]):
        parts.append(data[place : place + size])
        place += size
    return parts


class MessageKind(IntEnum):
    """Kinds of messages: the first four are from the child, the others from the parent."""

    ITEM = 1
    ANSWER = 2
    ERROR = 3
    REQUEST = 4
    CALL = 5
    REPLY = 6
    REFUSAL = 7


class ProtocolError(Exception):
    """The other side does not keep to the protocol."""


class Channel:
    """One end of the pair.

    Args:
        end: Connected socket.
        limit: Largest length of a message that is taken, in bytes.
    """

    def __init__(self, end: socket.socket, limit: int) -> None:
        self._end, self._limit = end, limit
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)

    def send(
        self,
        kind: MessageKind,
        number: int,
        parts: Sequence[Any] = (),
        deadline: float | None = None,
        descriptor: int | None = None,
    ) -> None:
        """Sends a message.

        Args:
            parts: Buffers whose bytes are the message's.
            deadline: Time of `time.monotonic` by which it must be sent; None to wait.
            descriptor: File descriptor that goes with it.

        Raises:
            TimeoutError: the deadline passed.
            OSError: the other side is gone.
        """
        views = [memoryview(part).cast("B") for part in parts]
        header = _HEADER.pack(kind, number, sum(view.nbytes for view in views))
        self._wait(deadline)
        if descriptor is None:
            self._end.sendall(header)
        else:
            socket.send_fds(self._end, [header], [descriptor])
        for view in views:
            self._wait(deadline)
            self._end.sendall(view)

    def receive(self, deadline: float | None = None) -> tuple[MessageKind, int, memoryview, list[int]]:
        """Receives a message: its kind, number, bytes and file descriptors.

        Raises:
            TimeoutError: the deadline passed.
            EOFError: the other side is gone.
            ProtocolError: the message is of no known kind, or too long.
        """
        self._wait(deadline)
        start, descriptors, _, _ = socket.recv_fds(self._end, _HEADER.size, MAX_FILES)
        try:
            return *self._message(start, deadline), descriptors
        except BaseException:
            for descriptor in descriptors:  # nobody else knows of them
                os.close(descriptor)
            raise

    def _message(self, start: bytes, deadline: float | None) -> tuple[MessageKind, int, memoryview]:
        """The message that begins with some bytes."""
        header = bytearray(start)
        while len(header) < _HEADER.size:
            header += self._some(_HEADER.size - len(header), deadline)
        kind, number, length = _HEADER.unpack(header)
        if kind not in MessageKind.__members__.values() or length > self._limit:
            raise ProtocolError(f"a message of kind {kind} and {length:,} bytes")
        data, filled = bytearray(min(length, _PIECE)), 0
        while filled < length:
            if filled == len(data):
                data.extend(bytes(min(length - filled, max(_PIECE, filled))))
            self._wait(deadline)
            count = self._end.recv_into(memoryview(data)[filled:])
            if not count:
                raise EOFError
            filled += count
        return MessageKind(kind), number, memoryview(data)

    def close(self) -> None:
        self._end.close()

    def _some(self, size: int, deadline: float | None) -> bytes:
        self._wait(deadline)
        data = self._end.recv(size)
        if not data:
            raise EOFError
        return data

    def _wait(self, deadline: float | None) -> None:
        """Sets how long the next operation may wait. Raises TimeoutError if that time is over."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._end.settimeout(left)
