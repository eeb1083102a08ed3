"""Content of image and video URLs in requests: data URLs, and http(s) URLs of allowed hosts."""

import base64
import re
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver

from videolavit.records.confinement import is_public

from .errors import ApiError, bad_request

MediaType = Literal["image", "video"]
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
FETCH_SECONDS = 30.0
"""Time limit of a fetch, in seconds."""


class Fetcher:
    """Reads the content of URLs.

    Args:
        hosts: Hosts that may be fetched from.
        max_bytes: Largest content, in bytes.
        allowed: Tells for each address that a host name resolves to whether connections to it are allowed.
    """

    def __init__(self, hosts: list[str], max_bytes: int, allowed: Callable[[str], bool] = is_public) -> None:
        self._hosts, self._max_bytes, self._allowed = set(hosts), max_bytes, allowed

    async def read(self, url: str, param: str) -> tuple[bytes, str]:
        """Content and media type of a URL. Raises ApiError."""
        if url.startswith("data:"):
            return _decode_data_url(url, param)
        try:
            parts = urlsplit(url)
        except ValueError:
            raise bad_request("not a valid URL", param) from None
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise bad_request("give a data URL (data:TYPE;base64,...)", param)
        if parts.hostname not in self._hosts:
            raise bad_request(
                "this service does not fetch from that host: send the file as a data URL",
                param,
                "forbidden_url",
            )
        return await self._fetch(url, param)

    async def _fetch(self, url: str, param: str) -> tuple[bytes, str]:
        forbidden = bad_request("the address is not on the public internet", param, "forbidden_url")
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
                    raise bad_request(f"the URL was answered with status {response.status}", param, "not_fetched")
                data = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    data += chunk
                    if len(data) > self._max_bytes:
                        raise ApiError(
                            413, f"the file is larger than {self._max_bytes} bytes", "too_large", param=param
                        )
                return bytes(data), response.content_type
        except _Forbidden:
            raise forbidden from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if isinstance(error.__cause__, _Forbidden):
                raise forbidden from None
            raise bad_request("the URL cannot be fetched", param, "not_fetched") from None


class _Forbidden(OSError):
    """A host name resolves to an address that is not allowed."""


class _CheckedResolver(AbstractResolver):
    """Resolver that checks the addresses which are then connected to, so that a name cannot change in between."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._resolver, self._allowed = DefaultResolver(), allowed

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        found = await self._resolver.resolve(host, port, family)
        if not all(self._allowed(result["host"]) for result in found):
            raise _Forbidden(host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def media_kind(media_type: str, param: str) -> MediaType:
    """Kind of media of a media type. Raises ApiError for others than images and videos."""
    kind = media_type.split("/")[0]
    if kind == "image":
        return "image"
    if kind == "video":
        return "video"
    raise bad_request(f"the file must be an image or a video, not {media_type}", param)


def _decode_data_url(url: str, param: str) -> tuple[bytes, str]:
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
