"""Confinement of tables. They come from strangers: their rows must not lead a reader to other files, or into networks
that only this machine reaches."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from videolavit.media.errors import MediaError

from .addresses import folder_of, is_web, protocol_of, shown, without_query

_WITH_IPV4 = tuple(map(IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96")))
"""Ranges whose addresses end in an IPv4 address: NAT64, and translated."""

_SPECIAL = tuple(
    ip_network(one)
    for one in (
        *("192.0.0.0/24", "192.88.99.0/24"),
        *("::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "3fff::/20", "5f00::/16", "fec0::/10"),
    )
)
"""Ranges for protocols, documentation and local use that `ipaddress` takes for global in some versions of Python."""


class OutsideAddress(MediaError):
    """A row names what its table may not name."""


def check_named(address: str, table: str, allow: Sequence[str]) -> None:
    """Raises OutsideAddress if a table may not name an address.

    It may name what lies in its folder, or anywhere in its bucket; what is on a web server, which must be a public one
    when it is opened; and what is allowed.

    Args:
        address: Absolute address.
        table: Address of the table.
        allow: Beginnings of further addresses.
    """
    if is_web(address) or any(begins(address, one) for one in allow):
        return
    if protocol_of(address) != "file":
        if _bucket(address) != _bucket(table) or ".." in address.split("/"):  # clients of storages resolve it
            raise _outside(address, table, "outside of its bucket", f"{_bucket(address)}/")
    elif protocol_of(table) != "file":
        raise _outside(address, table, "a file of this machine", os.path.dirname(address))
    else:
        folder = _real_folder(folder_of(os.path.abspath(table)))
        if not is_in(real_path(address), folder):
            through_link = is_in(os.path.normpath(address), folder)
            why = "outside of its folder" + (", through a symbolic link" if through_link else "")
            raise _outside(address, table, why, os.path.dirname(real_path(address)))


def _outside(address: str, table: str, why: str, fix: str) -> OutsideAddress:
    return OutsideAddress(f"{shown(table)} names {shown(address)}, {why}; allow {fix} if you trust it")


def begins(address: str, prefix: str) -> bool:
    """True if an address is, or lies below, another one; a prefix that ends with a slash is any beginning."""
    if protocol_of(prefix) == "file" and protocol_of(address) == "file":
        return is_in(real_path(address), _real_folder(prefix))
    return address == prefix or address.startswith(prefix if prefix.endswith("/") else f"{prefix}/")


def _bucket(url: str) -> str:
    """Protocol and bucket of an address; of one on the hub, the repository."""
    protocol, _, rest = url.partition("://")
    parts = rest.split("/")
    count = 1
    if protocol == "hf":
        count = 3 if parts[0] in ("datasets", "spaces", "buckets") else 2
    return f"{protocol}://{'/'.join(parts[:count])}"


def is_in(path: str, folder: str) -> bool:
    """True if a local path is a folder, or lies below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def real_path(path: str) -> str:
    """Path without symbolic links; the folder's is looked up once for many files."""
    folder, name = os.path.split(path)
    real = os.path.join(_real_folder(folder), name)
    return os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


# ---- web servers ----------------------------------------------------------------------------------------------------

Server = tuple[str, int]
"""Name or address of a web server, and its port."""


def server_of(url: str) -> Server | None:
    """Server of a web address; None if it names none."""
    parts = urlsplit(url)
    return (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)) if parts.hostname else None


@dataclass(frozen=True)
class WebTrust:
    """Web servers that may be on a private network: those that the user named.

    Args:
        allow: Beginnings of addresses.
    """

    allow: tuple[str, ...]

    def covers(self, url: str) -> bool:
        """True if an address is on one of the servers."""
        return any(begins(without_query(url), one) for one in self.allow)

    def servers(self, url: str) -> tuple[Server, ...] | None:
        """Servers on private networks that may be connected to for an address, wherever it redirects to; None for any
        server."""
        if not self.covers(url):
            return ()
        found = [server_of(one) for one in self.allow]
        return None if None in found else tuple(filter(None, found))


def trust_of(inputs: Sequence[str], allow: Sequence[str]) -> WebTrust:
    """Trust in the web servers of inputs that the user named, and in those that are allowed."""
    servers = [urlsplit(one) for one in inputs if is_web(one)]
    return WebTrust((*(f"{one.scheme}://{one.netloc}/" for one in servers), *filter(is_web, allow)))


def is_public(address: str) -> bool:
    """Tells whether an address is on the public internet, not on this machine or a private network.

    IPv6 addresses that embed an IPv4 address are judged by that one.
    """
    found = ip_address(address)
    if isinstance(found, IPv6Address):
        embedded = any(found in one for one in _WITH_IPV4)
        last = IPv4Address(int(found) & 0xFFFFFFFF) if embedded else None
        found = found.ipv4_mapped or found.sixtofour or last or found
    return found.is_global and not found.is_multicast and not any(found in one for one in _SPECIAL)


class NotPublic(PermissionError):
    """An address is not on the public internet."""
