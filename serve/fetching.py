"""Pictures and videos that a request names: data URLs, and addresses that the service allows."""

import base64
import re
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver

from .errors import ApiError, bad_request

Kind = Literal["image", "video"]
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_NAT64 = IPv6Network("64:ff9b::/96")
FETCH_SECONDS = 30.0


def is_public(address: str) -> bool:
    """Whether an address is of the internet, and not of this machine or its network.

    An IPv6 address that stands for an IPv4 address is what that one is.
    """
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        translated = IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or translated or found
    return found.is_global and not found.is_multicast


class Fetcher:
    """Reads what a URL stands for.

    Args:
        hosts: That may be asked; none is by default.
        max_bytes: Of what is read.
        allowed: Which addresses may be connected to, whatever a host's name resolves to.
    """

    def __init__(self, hosts: list[str], max_bytes: int, allowed: Callable[[str], bool] = is_public) -> None:
        self._hosts, self._max_bytes, self._allowed = set(hosts), max_bytes, allowed

    async def read(self, url: str, param: str) -> tuple[bytes, str]:
        """Content and media type. Raises ApiError."""
        if url.startswith("data:"):
            return _decoded(url, param)
        try:
            parts = urlsplit(url)
        except ValueError:
            raise bad_request("that is no URL", param) from None
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise bad_request("give a data URL (data:TYPE;base64,...)", param)
        if parts.hostname not in self._hosts:
            raise bad_request(
                "this service does not fetch from that host: send the file itself, as a data URL",
                param,
                "forbidden_url",
            )
        return await self._fetched(url, param)

    async def _fetched(self, url: str, param: str) -> tuple[bytes, str]:
        forbidden = bad_request("that address is not of the internet", param, "forbidden_url")
        host = urlsplit(url).hostname or ""
        if _is_address(host) and not self._allowed(host):
            raise forbidden
        connector = aiohttp.TCPConnector(resolver=_CheckedResolver(self._allowed), use_dns_cache=False)
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise bad_request(f"the address answered with status {response.status}", param, "not_fetched")
                data = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    data += piece
                    if len(data) > self._max_bytes:
                        raise ApiError(413, f"the file has more than {self._max_bytes} bytes", "too_large", param=param)
                return bytes(data), response.content_type
        except _Forbidden:
            raise forbidden from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if isinstance(error.__cause__, _Forbidden):
                raise forbidden from None
            raise bad_request("the address cannot be read", param, "not_fetched") from None


class _Forbidden(OSError):
    """A name leads to an address that may not be asked."""


class _CheckedResolver(AbstractResolver):
    """What is checked is what is connected to: a name cannot change its address in between."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._resolver, self._allowed = DefaultResolver(), allowed

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        found = await self._resolver.resolve(host, port, family)
        if not all(self._allowed(one["host"]) for one in found):
            raise _Forbidden(host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def kind_of(media_type: str, param: str) -> Kind:
    """Whether it is a picture or a video. Raises ApiError for anything else."""
    kind = media_type.split("/")[0]
    if kind == "image":
        return "image"
    if kind == "video":
        return "video"
    raise bad_request(f"a picture or a video is wanted, not {media_type}", param)


def _decoded(url: str, param: str) -> tuple[bytes, str]:
    match = _DATA_URL.match(url)
    if match is None:
        raise bad_request("a data URL looks like data:image/png;base64,...", param)
    try:
        return base64.b64decode(url[match.end() :], validate=True), match[1] or "text/plain"
    except ValueError:
        raise bad_request("the data URL is not valid base64", param) from None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
