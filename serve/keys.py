"""API keys, stored as hashes, and admission of requests within the limits of a key and of the service."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from starlette.types import Message, Receive

from videolavit.files import write_beside
from videolavit.models.network import STRICT

from .errors import ApiError, deadline_exceeded, too_many, unavailable
from .settings import is_loopback

PREFIX = "sk-vl-"
"""Beginning of a secret: `sk-`, without which some clients take no key, and that of this service."""

KEYS_SECONDS = 1.0
"""Interval at which the file of keys is looked at, in seconds."""

ANONYMOUS = "anybody"
"""Owner of requests and jobs of a service without keys."""

READS_PER_REQUEST = 4
"""Requests without a body that a key may have in flight for each with one: they ask for results, and are cheap."""

log = logging.getLogger("videolavit.serve")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Key:
    """API key with its limits.

    Args:
        name: Name of the owner, to whom jobs belong.
        sha256: Hash of the secret, in hexadecimal. The secret has 256 random bits, so that a plain hash is enough.
        requests_per_minute: Average rate of requests.
        concurrent: Most requests in flight.
    """

    name: str
    sha256: str
    requests_per_minute: float = 600.0
    concurrent: int = 32

    def __post_init__(self) -> None:
        if not self.name or self.requests_per_minute <= 0 or self.concurrent < 1:
            raise ValueError("a key has a name, requests_per_minute above 0 and concurrent of at least 1")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 of the key {self.name} must be 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyFile:
    """Content of a file of API keys."""

    keys: list[Key] = field(default_factory=list)


def read_keys(path: str) -> list[Key]:
    """Reads a file of API keys. Raises ValueError for one that is not valid, or has no key."""
    try:
        keys = TypeAdapter(KeyFile).validate_json(Path(path).read_bytes()).keys
    except OSError as error:
        raise ValueError(f"cannot read the keys: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not a file of API keys: {error.errors()[0]['msg']}") from None
    if not keys:
        raise ValueError(f"{path} has no key; create a new key first")
    return keys


def add_key(path: str, name: str) -> str:
    """Adds a key to a file, which is created if it is missing; returns the secret, which is stored nowhere else.

    Raises:
        ValueError: the file is not valid, or has a key of that name.
    """
    file = Path(path)
    known = read_keys(path) if file.exists() else []
    if name in (key.name for key in known):
        raise ValueError(f"{path} already has a key {name}")
    secret = PREFIX + secrets.token_urlsafe(32)
    every = KeyFile(keys=[*known, Key(name=name, sha256=_hash(secret))])
    with (
        write_beside(file) as (unfinished,),
        open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target,
    ):
        json.dump(TypeAdapter(KeyFile).dump_python(every), target, indent=2)
    return secret


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def follow_keys(path: str, admission: "Admission") -> None:
    """Reads a file of keys again whenever it changes, until this is cancelled; a file that is not valid is ignored."""
    known: tuple[float, int, int] | None = None
    while True:
        found = await asyncio.to_thread(_stat, path)
        if found != known:
            known = found
            try:
                admission.keys = await asyncio.to_thread(read_keys, path)
            except ValueError as error:
                log.warning("%s; the keys from before stay valid", error)
        await asyncio.sleep(KEYS_SECONDS)


def _stat(path: str) -> tuple[float, int, int] | None:
    """Time of the last change, inode and size of a file; None if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime, found.st_ino, found.st_size


class Admission:
    """Checks keys, and admits requests within the limits of each key and of the whole service.

    Args:
        keys: Accepted keys; None to accept requests without a key from this machine.
        max_in_flight: Most requests in flight, of all keys.
        max_body_bytes: Most bytes of bodies of requests in progress, of all keys.
    """

    def __init__(self, keys: list[Key] | None, max_in_flight: int, max_body_bytes: int) -> None:
        self.keys, self.closed = keys, False
        self._max_in_flight, self._max_body_bytes = max_in_flight, max_body_bytes
        self._buckets: dict[str, tuple[float, float]] = {}
        self._of_owner: dict[str, int] = {}
        self._in_flight = 0
        self._reading: dict[str, int] = {}
        self._body_bytes = 0
        self._receiving: set[asyncio.Timeout] = set()

    def close(self) -> None:
        """Admits no more requests, and ends the wait for bodies that have not come."""
        self.closed = True
        for timeout in self._receiving:
            timeout.reschedule(asyncio.get_running_loop().time())

    def authenticate(self, authorization: str | None, client: str) -> str:
        """Name of the owner of the key in a header. Raises ApiError for an unknown key.

        Args:
            client: IP address of the client; a service without keys accepts loopback addresses only.
        """
        if self.keys is None:
            if not is_loopback(client):
                message = "this service has no API keys, and accepts requests from its own machine only"
                raise ApiError(403, message, "no_keys", kind="permission_error")
            return ANONYMOUS
        scheme, _, secret = (authorization or "").partition(" ")
        given = _hash(secret.strip())
        found = [key.name for key in self.keys if hmac.compare_digest(key.sha256, given)]  # compares with every key
        if scheme.lower() != "bearer" or not found:
            message = "unknown API key" if secret else "give an API key, as `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", kind="authentication_error")
        return found[0]

    @contextlib.asynccontextmanager
    async def admit(self, owner: str) -> AsyncIterator[None]:
        """Counts a request for its key during the body. Raises ApiError if that is beyond a limit of the key."""
        if self.closed:
            raise unavailable("the service is stopping")
        key = self._key(owner)
        if key is not None:
            if self._of_owner.get(owner, 0) >= key.concurrent:
                raise too_many(f"this key has {key.concurrent} requests in flight already", 1)
            self._take_from_bucket(key)
        with _counted(self._of_owner, owner):
            yield

    @contextlib.contextmanager
    def read(self, owner: str) -> Iterator[None]:
        """Counts a request without a body during the body. Raises ApiError if its key has too many."""
        key = self._key(owner)
        most = READS_PER_REQUEST * (self._max_in_flight if key is None else key.concurrent)
        if self._reading.get(owner, 0) >= most:
            raise too_many(f"{most} requests for results are in flight already", 1)
        with _counted(self._reading, owner):
            yield

    @contextlib.asynccontextmanager
    async def body(self, receive: Receive, moment: float, seconds: float) -> AsyncIterator[deque[Message]]:
        """Messages with the body of a request, which holds no place while it is received. Its bytes count during the
        body of the context too: a request keeps what it was sent.

        Args:
            moment: Deadline, on the loop's clock.
            seconds: Time until the deadline, in seconds, for the message of the error.

        Raises:
            ApiError: the body has not come before the deadline or the end of the service, or too much is received.
        """
        messages: deque[Message] = deque()
        own_bytes, more = 0, True
        try:
            async with asyncio.timeout_at(moment) as timeout:
                self._receiving.add(timeout)
                while more:
                    messages.append(await receive())
                    own_bytes += len(messages[-1].get("body", b""))
                    self._body_bytes += len(messages[-1].get("body", b""))
                    if self._body_bytes > self._max_body_bytes:
                        raise too_many("the service has too many large bodies; try again", 1, "overloaded")
                    more = messages[-1].get("more_body", False)  # not after a disconnect either
            self._receiving.discard(timeout)
            yield messages
        except TimeoutError:
            if timeout not in self._receiving:  # raised by the body of the context
                raise
            raise unavailable("the service is stopping") if self.closed else deadline_exceeded(seconds) from None
        finally:
            self._receiving.discard(timeout)
            self._body_bytes -= own_bytes

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place among the requests in flight during the body. Raises ApiError if there is none."""
        if self.closed:
            raise unavailable("the service is stopping")
        if self._in_flight >= self._max_in_flight:
            raise too_many(f"the service has {self._max_in_flight} requests in flight; try again", 1, "overloaded")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def rate_headers(self, owner: str) -> dict[str, str]:
        """Headers about the rate limit of a key, as OpenAI names them; none for a service without keys."""
        key = self._key(owner)
        if key is None:
            return {}
        left, size, rate = self._bucket(key)
        return {
            "x-ratelimit-limit-requests": f"{int(size)}",
            "x-ratelimit-remaining-requests": f"{int(left)}",
            "x-ratelimit-reset-requests": f"{(size - left) / rate:.3g}s",
        }

    def _key(self, owner: str) -> Key | None:
        return next((key for key in self.keys or () if key.name == owner), None)

    def _bucket(self, key: Key) -> tuple[float, float, float]:
        """Requests left in a key's bucket, its size (ten seconds of requests, or one), and requests per second."""
        rate = key.requests_per_minute / 60
        size = max(1.0, rate * 10)
        left, at = self._buckets.get(key.name, (size, 0.0))
        return min(size, left + (time.monotonic() - at) * rate), size, rate

    def _take_from_bucket(self, key: Key) -> None:
        """Takes a request from the key's token bucket. Raises ApiError if it has none."""
        left, _, rate = self._bucket(key)
        if left < 1:
            message = f"this key is limited to {key.requests_per_minute:g} requests per minute"
            raise too_many(message, (1 - left) / rate)
        self._buckets[key.name] = left - 1, time.monotonic()


@contextlib.contextmanager
def _counted(counts: dict[str, int], owner: str) -> Iterator[None]:
    """Counts one more of an owner during the body."""
    counts[owner] = counts.get(owner, 0) + 1
    try:
        yield
    finally:
        counts[owner] -= 1


@contextlib.asynccontextmanager
async def deadline_at(moment: float, seconds: float) -> AsyncIterator[None]:
    """Cancels the body at a time of the loop's clock, and raises an ApiError that names the number of seconds."""
    try:
        async with asyncio.timeout_at(moment):
            yield
    except TimeoutError:
        raise deadline_exceeded(seconds) from None


KEY = HTTPBearer(auto_error=False, description="API key; not needed for a service without keys")
"""Documents the key, which the admission middleware checks."""


async def _owner(request: Request, key: Annotated[object, Depends(KEY)]) -> str:
    owner: str = request.state.owner
    return owner


OWNER = Depends(_owner)
"""Owner of the key of a request, as found by the admission middleware, for routes."""
