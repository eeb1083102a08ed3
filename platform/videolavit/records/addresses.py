"""Parts of addresses: local paths, and URLs of storages and web servers."""

import re
from urllib.parse import urlsplit, urlunsplit


def protocol_of(url: str) -> str:
    """`s3` of `s3://...`; `file` of a path. A path may contain `::`, which fsspec alone would read as a chain."""
    match = re.match(r"([a-zA-Z][\w+.-]+)://", url)
    return match[1].lower() if match else "file"


def is_web(url: str) -> bool:
    """True for an address on a web server, whose path ends before a query."""
    return protocol_of(url) in ("http", "https")


def normalised(url: str) -> str:
    """The URL with its protocol in lower case; a path as it is."""
    protocol, mark, rest = url.partition("://")
    return f"{protocol.lower()}://{rest}" if mark and protocol_of(url) == protocol.lower() else url


def path_of(url: str) -> str:
    """Path of a web address, still quoted; any other address as a whole."""
    return re.sub(r"^[^:]+://[^/]*", "", without_query(url)) if is_web(url) else url


def without_query(url: str) -> str:
    """A web address up to its path; any other address as a whole."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if is_web(url) else url


def folder_of(url: str) -> str:
    """Address of the folder that a file lies in."""
    return without_query(url).rpartition("/")[0]


def joined(folder: str, name: str) -> str:
    """Address of a name below a folder; a web address keeps its query."""
    path, mark, query = folder.partition("?") if is_web(folder) else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def resolved(folder: str, relative: str) -> str:
    """URL of a relative path below a folder. `..` does not lead out of a bucket or a server."""
    parts = folder.split("/")
    for part in relative.split("/"):
        if part == "..":
            parts = parts[: max(len(parts) - 1, 3)]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def shown(url: str) -> str:
    """Address for messages: without a password, and without the query of a web address, which may hold a token."""
    if "://" not in url:
        return url
    try:
        scheme, host, path, query, _ = urlsplit(url)
    except ValueError:
        return url
    if not is_web(url) and "@" not in host:
        return url
    return urlunsplit((scheme, host.rpartition("@")[2], path, "..." if query else "", ""))
