"""Files on web servers: by range requests, or as a whole from a server that has none; and index pages as folders."""

import contextlib
import errno
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence, Set
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies

import aiohttp
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import sync, sync_wrapper
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractBufferedFile

from videolavit.media.errors import SourceTooLarge

from .confinement import NotPublic, Server, is_public, server_of

MAX_DOWNLOAD = 2 << 30
"""Largest file that is read from a server without range requests, in bytes. It lies on the disk meanwhile."""

MAX_PAGES = 10_000
"""Index pages of a folder and the folders below it. More are pages of something else."""

MAX_PAGE = 64 << 20
"""Largest index page, in bytes: a million links."""

CONNECT_SECONDS, SILENCE_SECONDS = 15.0, 30.0
"""Limits for making a connection, and for a server that sends nothing."""

_PAGES = {"text/html", "application/xhtml+xml"}
_FORBIDDEN, _MISSING, _BEHIND_THE_END = {401, 403, 407}, {404, 410}, 416


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]
    """fsspec's HTTP filesystem, with OSErrors that do not repeat the address, since it may hold a secret.

    The original asks for sizes by HEAD, which presigned addresses refuse; cannot seek without range requests; takes a
    file that is cut short for a whole one; and leaves out folders whose page fails.
    """

    def __init__(self, private: Sequence[Server] | None = None, **options: Any) -> None:
        """Args:
        private: Servers that may be on a private network. All others must be on the public internet, but for the
            proxies that the environment names. None for any server.
        options: Options of fsspec.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        client = {"timeout": timeout, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
        if private is not None:
            options["get_client"] = partial(_confined_client, frozenset(private))
        super().__init__(client_kwargs=client, **options)
        self._last: tuple[str, Any] | None = None  # the last file that was read as a whole, as segments of it follow

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, start: int = 0, end: int | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """The good answer to a request for a file, or for a range of its bytes; the server may ignore the range."""
        headers = {} if end is None else {"Range": f"bytes={start}-{end - 1}"}
        session = await self.set_session()
        try:
            async with session.get(self.encode_url(url), headers=headers) as answer:
                if answer.status in _MISSING:
                    raise FileNotFoundError("the server has no such file")
                if answer.status in _FORBIDDEN:
                    raise PermissionError(f"the server answered with status {answer.status}")
                if answer.status >= 400 and not (headers and answer.status == _BEHIND_THE_END):
                    raise OSError(f"the server answered with status {answer.status}")
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, NotPublic):
                raise error.os_error from None
            raise OSError(_reason(error)) from None

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        async with self._answer(path, 0, 1) as answer:
            size = answer.content_length
            has_ranges = answer.status != 200 and "Content-Encoding" not in answer.headers
            if has_ranges:
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                has_ranges, size = total.isdigit(), int(total) if total.isdigit() else None
            is_page = answer.content_type in _PAGES and "." not in answer.url.name
            kind = "directory" if is_page else "file"
            return {"name": path, "size": size, "type": kind, "partial": has_ranges}

    async def _type(self, path: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return str((await self._info(path))["type"])
        return None

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return await self._type(path) is not None

    async def _isfile(self, path: str) -> bool:
        return await self._type(path) == "file"

    async def _isdir(self, path: str) -> bool:
        return await self._type(path) == "directory"

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        async with self._answer(path, start or 0, end) as answer:
            if end is not None and answer.status != 206:
                raise OSError("the server does not answer range requests any more")
            data = await _content(answer, MAX_DOWNLOAD if end is None else end - (start or 0))
        if end is not None and len(data) != end - (start or 0):
            raise OSError(f"the server sent {len(data)} of {end - (start or 0)} bytes")
        return data

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        info = sync(self.loop, self._info, path)
        if info["partial"]:
            return _WebFile(self, path, mode, block_size or self.block_size, "readahead", size=info["size"])
        if self._last is None or self._last[0] != path:
            file = tempfile.NamedTemporaryFile()  # noqa: SIM115, kept until another one takes its place
            sync(self.loop, self._download, path, file)
            self._last = path, file
        return Path(self._last[1].name).open("rb")

    async def _download(self, url: str, file: BinaryIO) -> None:
        size = 0
        async with self._answer(url) as answer:
            announced = answer.content_length or 0
            async for chunk in answer.content.iter_chunked(1 << 20):
                size += len(chunk)
                if max(size, announced) > MAX_DOWNLOAD:
                    limit = f"{MAX_DOWNLOAD >> 20} MiB"
                    raise SourceTooLarge(f"larger than {limit}, from a server without range requests")
                file.write(chunk)
        file.flush()

    # ---- folders --------------------------------------------------------------------------------------------------

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Links of an index page that lead below it."""
        async with self._answer(path) as answer:
            if answer.content_type not in _PAGES:
                raise FileNotFoundError("the server shows no index of a folder")
            data, final = await _content(answer, MAX_PAGE), answer.url
            page = data.decode(answer.charset or "utf-8", "replace")
        asked = urlsplit(path)
        host = asked.netloc if asked.hostname == final.host else urlsplit(str(final)).netloc  # keeps a password
        base = f"{final.scheme}://{host}{final.raw_path}"
        links = _Links()
        links.feed(page)
        folder = base.rstrip("/") + "/"
        found = {urljoin(base, link) for link in links.found}
        below = sorted(one for one in found if one.startswith(folder) and one.partition("?")[0] != folder)
        if not detail:
            return below
        return [
            {"name": one, "size": None, "type": "directory" if one.partition("?")[0].endswith("/") else "file"}
            for one in below
        ]

    ls = sync_wrapper(_ls)

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        found: dict[str, Any] = {}
        waiting, pages = [(path, 1)], {path}
        while waiting:
            folder, depth = waiting.pop()
            for info in await self._ls(folder):
                if info["type"] == "file" or withdirs:
                    found[info["name"]] = info
                if info["type"] == "directory" and info["name"] not in pages and depth != maxdepth:
                    pages.add(info["name"])
                    waiting.append((info["name"], depth + 1))
            if len(pages) > MAX_PAGES:
                raise OSError(f"more than {MAX_PAGES} index pages")
        return found if detail else sorted(found)

    async def _put_file(self, *args: Any, **kwargs: Any) -> None:
        raise OSError("files are not written to web servers")


async def _confined_client(private: Set[Server], **options: Any) -> aiohttp.ClientSession:
    """Session that connects to public addresses, to some private servers, and to the proxies of the environment, by
    whatever name or redirection it comes to them."""
    known = private | {server for server in map(server_of, getproxies().values()) if server is not None}
    resolver = _NotingResolver(known)

    def make_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = info
        if (host, port) not in resolver.addresses and not is_public(host.partition("%")[0]):
            raise NotPublic(errno.EACCES, "not on the public internet")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(resolver=resolver, socket_factory=make_socket)
    return aiohttp.ClientSession(connector=connector, **options)


class _NotingResolver(ThreadedResolver):
    """Resolver that notes the addresses of known servers.

    Attributes:
        addresses: Addresses and ports of known servers.
    """

    def __init__(self, known: Set[Server]) -> None:
        super().__init__()
        self._known = known
        self.addresses: set[Server] = set(known)  # some are addresses already

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        found = await super().resolve(host, port, family)
        if (host.lower(), port) in self._known:
            self.addresses |= {(one["host"], port) for one in found}
        return found


async def _content(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """Content of an answer. Raises OSError for one of more than `limit` bytes, whatever it announces."""
    data = bytearray()
    async for chunk in answer.content.iter_chunked(1 << 20):
        data += chunk
        if len(data) > limit:
            raise OSError(f"the server sent more than {limit} bytes")
    return bytes(data)


class _WebFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file that is read by range requests."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)  # type: ignore[no-any-return]


class _Links(HTMLParser):
    """Targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value.partition("#")[0] for name, value in attributes if name == "href" and value]


def _reason(error: Exception) -> str:
    """Reason of a failure, without the address."""
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the answer was cut short"
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS:g} s, or nothing for {SILENCE_SECONDS:g} s"
    names = {aiohttp.TooManyRedirects: "too many redirects", aiohttp.InvalidURL: "not a valid address"}
    return next((text for kind, text in names.items() if isinstance(error, kind)), type(error).__name__)
