"""API keys: hashed where they lie, compared in constant time, with limits of their own."""

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

from .errors import ApiError, too_late, too_many
from .settings import is_loopback

PREFIX = "vl-"
ANYBODY = "anybody"
"""Who asks where no keys are needed."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Key:
    """Who may ask, and how much.

    Args:
        name: Of the key's owner; jobs belong to it.
        sha256: Of the secret, in hexadecimal. The secret has 256 random bits, so that a plain hash is enough.
        requests_per_minute: On average.
        concurrent: Requests at once.
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
    """All keys of a service."""

    keys: list[Key] = field(default_factory=list)


def read_keys(path: str) -> list[Key]:
    """The keys of a file. Raises ValueError for a file that is none, or without a key."""
    try:
        keys = TypeAdapter(KeyFile).validate_json(Path(path).read_bytes()).keys
    except OSError as error:
        raise ValueError(f"cannot read the keys: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is no file of keys: {error.errors()[0]['msg']}") from None
    if not keys:
        raise ValueError(f"{path} has no key; make one with --new-key NAME")
    return keys


def add_key(path: str, name: str) -> str:
    """Adds a key to a file, which is made if need be, and returns its secret: it is kept nowhere else.

    Raises:
        ValueError: the file is no file of keys, or has one of that name.
    """
    file = Path(path)
    known = read_keys(path) if file.exists() else []
    if name in (key.name for key in known):
        raise ValueError(f"{path} has a key {name} already")
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


class Gate:
    """Who may come in: known keys, within their limits and that of the whole service.

    Args:
        keys: None lets anybody in.
        in_flight: Requests in work at once, of all keys together.
    """

    def __init__(self, keys: list[Key] | None, in_flight: int) -> None:
        self._keys, self._in_flight = keys, in_flight
        self._allowance: dict[str, tuple[float, float]] = {}
        self._busy: dict[str, int] = {}

    @property
    def busy(self) -> int:
        """Requests in work."""
        return sum(self._busy.values())

    def owner(self, authorization: str | None, client: str) -> str:
        """Whose key a header has. Raises ApiError for none that is known.

        Args:
            client: Address of who asks; where there are no keys, only this machine may.
        """
        if self._keys is None:
            if not is_loopback(client):
                message = "this service has no API keys, and so answers the machine that it runs on alone"
                raise ApiError(403, message, "no_keys", kind="permission_error")
            return ANYBODY
        scheme, _, secret = (authorization or "").partition(" ")
        asked = _hash(secret.strip())
        found = [key.name for key in self._keys if hmac.compare_digest(key.sha256, asked)]  # looks at every key
        if scheme.lower() != "bearer" or not found:
            message = "this API key is not known" if secret else "give an API key, as `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", kind="authentication_error")
        return found[0]

    @contextlib.asynccontextmanager
    async def admitted(self, owner: str) -> AsyncIterator[None]:
        """A place in the service for as long as the body lasts. Raises ApiError if there is none."""
        key = next((key for key in self._keys or () if key.name == owner), None)
        if self.busy >= self._in_flight:
            raise too_many(f"the service works on {self._in_flight} requests; try again", 1, "overloaded")
        if key is not None:
            if self._busy.get(owner, 0) >= key.concurrent:
                raise too_many(f"this key has {key.concurrent} requests in work already", 1)
            self._spend(key)
        self._busy[owner] = self._busy.get(owner, 0) + 1
        try:
            yield
        finally:
            self._busy[owner] -= 1

    def _spend(self, key: Key) -> None:
        """Takes one request from the key's bucket, which fills evenly and holds ten seconds' worth, at least one."""
        rate = key.requests_per_minute / 60
        size = max(1.0, rate * 10)
        now = time.monotonic()
        left, at = self._allowance.get(key.name, (size, now))
        left = min(size, left + (now - at) * rate)
        if left < 1:
            self._allowance[key.name] = (left, now)
            raise too_many(f"this key may ask {key.requests_per_minute:g} times a minute", (1 - left) / rate)
        self._allowance[key.name] = (left - 1, now)


@contextlib.asynccontextmanager
async def until(moment: float, seconds: float) -> AsyncIterator[None]:
    """Ends the body at a moment of the loop's clock, as an ApiError that names the seconds."""
    try:
        async with asyncio.timeout_at(moment):
            yield
    except TimeoutError:
        raise too_late(seconds) from None
