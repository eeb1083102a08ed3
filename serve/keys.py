"""API keys, stored as hashes, and admission of requests within the limits of a key and of the service."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from videolavit.files import write_beside
from videolavit.models.network import STRICT

from .errors import ApiError, deadline_exceeded, too_many, unavailable
from .settings import is_loopback

PREFIX = "vl-"
ANONYMOUS = "anybody"
"""Owner of requests and jobs of a service without keys."""


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


class Admission:
    """Checks keys, and admits requests within the limits of each key and of the whole service.

    Args:
        keys: Accepted keys; None to accept requests without a key from this machine.
        max_in_flight: Most requests in flight, of all keys.
    """

    def __init__(self, keys: list[Key] | None, max_in_flight: int) -> None:
        self._keys, self._max_in_flight = keys, max_in_flight
        self._closed = False
        self._buckets: dict[str, tuple[float, float]] = {}
        self._in_flight: dict[str, int] = {}

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return sum(self._in_flight.values())

    def close(self) -> None:
        """Admits no more requests."""
        self._closed = True

    def authenticate(self, authorization: str | None, client: str) -> str:
        """Name of the owner of the key in a header. Raises ApiError for an unknown key.

        Args:
            client: IP address of the client; a service without keys accepts loopback addresses only.
        """
        if self._keys is None:
            if not is_loopback(client):
                message = "this service has no API keys, and accepts requests from its own machine only"
                raise ApiError(403, message, "no_keys", kind="permission_error")
            return ANONYMOUS
        scheme, _, secret = (authorization or "").partition(" ")
        given = _hash(secret.strip())
        found = [key.name for key in self._keys if hmac.compare_digest(key.sha256, given)]  # compares with every key
        if scheme.lower() != "bearer" or not found:
            message = "unknown API key" if secret else "give an API key, as `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", kind="authentication_error")
        return found[0]

    @contextlib.asynccontextmanager
    async def admit(self, owner: str) -> AsyncIterator[None]:
        """Counts a request as in flight during the body. Raises ApiError if that is beyond a limit."""
        key = next((key for key in self._keys or () if key.name == owner), None)
        if self._closed:
            raise unavailable("the service is stopping")
        if self.in_flight >= self._max_in_flight:
            raise too_many(f"the service has {self._max_in_flight} requests in flight; try again", 1, "overloaded")
        if key is not None:
            if self._in_flight.get(owner, 0) >= key.concurrent:
                raise too_many(f"this key has {key.concurrent} requests in flight already", 1)
            self._take_from_bucket(key)
        self._in_flight[owner] = self._in_flight.get(owner, 0) + 1
        try:
            yield
        finally:
            self._in_flight[owner] -= 1

    def _take_from_bucket(self, key: Key) -> None:
        """Takes a request from the key's token bucket, which holds the requests of ten seconds, and at least one."""
        rate = key.requests_per_minute / 60
        size = max(1.0, rate * 10)
        now = time.monotonic()
        left, at = self._buckets.get(key.name, (size, now))
        left = min(size, left + (now - at) * rate)
        if left < 1:
            self._buckets[key.name] = (left, now)
            message = f"this key is limited to {key.requests_per_minute:g} requests per minute"
            raise too_many(message, (1 - left) / rate)
        self._buckets[key.name] = (left - 1, now)


@contextlib.asynccontextmanager
async def deadline_at(moment: float, seconds: float) -> AsyncIterator[None]:
    """Cancels the body at a time of the loop's clock, and raises an ApiError that names the number of seconds."""
    try:
        async with asyncio.timeout_at(moment):
            yield
    except TimeoutError:
        raise deadline_exceeded(seconds) from None
