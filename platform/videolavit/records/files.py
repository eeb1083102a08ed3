"""Files that an input names: a folder, a glob, a single file, on any fsspec location."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem

from .addresses import is_web, normalised, path_of, protocol_of, resolved, shown
from .confinement import is_in, real_path
from .storage import StorageSettings, absolute_url, filesystem, naming_location

SIDECARS = frozenset(
    {
        ".txt",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".parquet",
        ".md",
        ".yaml",
        ".yml",
        ".xml",
        ".html",
        ".log",
        ".srt",
        ".vtt",
    }
)
"""Files beside media in a folder that are no input. Everything else is tried, and rejected if it is no medium."""

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mp4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".flv", ".mkv", ".webm", ".avi", ".divx"),
        *(".mpg", ".mpeg", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".wmv", ".asf", ".rm", ".rmvb"),
        *(".ogv", ".ogm", ".h264", ".h265", ".hevc", ".dv"),
    }
)
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".jp2",
        ".avif",
        ".jfif",
        ".heic",
        ".heif",
        ".hif",
    }
)
TEXT_SUFFIXES = frozenset({".txt", ".md"})
TABLE_SUFFIXES = frozenset({".parquet", ".jsonl", ".csv"})
TAR_SUFFIX = ".tar"
OTHER_TABLES = frozenset({".json", ".ndjson", ".tsv", ".arrow", ".feather", ".orc", ".xls", ".xlsx"})
ARCHIVES = frozenset({".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst"})
"""Suffixes of files that are not read. Naming one is a mistake; in a folder they are sidecars, or tried as others."""


class InputError(ValueError):
    """The input that the user named cannot be used as a whole; the message names the fix."""


@dataclass(frozen=True)
class NamedFiles:
    """Files that an input names.

    Attributes:
        named: Names of the files.
        files: Names below the folder, and addresses, sorted by name.
        linked: Addresses of files that symbolic links bring in from outside of the folder.
    """

    named: Literal["file", "folder", "glob"]
    files: list[tuple[str, str]]
    linked: list[str]


def find_files(url: str, storage: StorageSettings) -> NamedFiles:
    """Finds the files that an input names; opens none of them. Symbolic links to folders are followed.

    Raises:
        InputError: nothing is there.
        StorageError: the location cannot be used.
    """
    fs, path = filesystem(absolute_url(url), storage)
    if isinstance(fs, LocalFileSystem):
        fs = _FollowingLinks()
    protocol = protocol_of(url)
    prefix = "" if protocol == "file" or is_web(url) else f"{protocol}://"
    name = path_of(path)
    wildcard = re.search(r"[*\[]" if is_web(url) else r"[*?\[]", name)
    named: Literal["file", "folder", "glob"]
    found: dict[str, Any] | None = None
    try:
        with naming_location(url):
            if wildcard and not fs.exists(path):
                base = name[: wildcard.start()].rpartition("/")[0]
                found, named = fs.glob(path, detail=True), "glob"
            elif fs.isdir(path):
                base = name.rstrip("/")
                found, named = fs.find(path, detail=True), "folder"
            elif fs.isfile(path):
                base = name.rpartition("/")[0]
                found, named = {path: fs.info(path)}, "file"
            elif not fs.exists(path):
                raise FileNotFoundError(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file, folder or key: {shown(url)}") from None
    if found is None:
        raise InputError(f"neither a file nor a folder: {shown(url)}")
    # An object store lists a folder's marker as `name/`. A name that is not UTF-8 cannot be opened by name; it is kept
    # in a readable form and will be rejected.
    kept = [
        name
        for name, info in sorted(found.items())
        if info["type"] not in ("directory", "other") and not name.endswith("/")
    ]
    names = [readable(name) for name in kept]
    linked = _linked(kept, base) if protocol == "file" and named != "file" else []
    return NamedFiles(named, [(path_of(name).removeprefix(base), prefix + name) for name in names], linked)


def _linked(names: Sequence[str], folder: str) -> list[str]:
    """Local files that symbolic links bring in from outside of a folder."""
    real = os.path.realpath(folder)
    return [readable(name) for name in names if not is_in(real_path(name), real)]


class _FollowingLinks(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Local files, with symbolic links as what they lead to. A link that leads to nothing is a file that is missing."""

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Facts of a file or folder; a pipe, a socket, a device and a link to a folder above it are `other`."""
        found: dict[str, Any] = super().info(path, **kwargs)
        if found["islink"]:
            name = Path(found["name"])
            if name.is_dir():
                found["type"] = "other" if any(name.samefile(parent) for parent in name.parents) else "directory"
            else:
                found["type"] = "file" if name.is_file() or not name.exists() else "other"
        return found


def readable(text: str) -> str:
    """The text with bytes that are not UTF-8, and halves of surrogate pairs, in the form `\\xff`."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


def suffix_of(address: str) -> str:
    """Suffix of a file name or address, in lower case and with its dot."""
    return os.path.splitext(path_of(address))[1].lower()


def refuse_unread(url: str) -> None:
    """Raises InputError for a named file whose suffix says that it is a table or an archive that is not read."""
    suffix = suffix_of(url)
    if suffix in OTHER_TABLES:
        raise InputError(f"{shown(url)}: tables are read from .parquet, .jsonl and .csv, not from {suffix}")
    if suffix in ARCHIVES:
        raise InputError(f"{shown(url)}: compressed files are not read; unpack it, or make it an uncompressed .tar")


def is_hidden(name: str) -> bool:
    """True for a name below the folder with a part that begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def is_table(name: str) -> bool:
    """True for a name with a suffix of a table."""
    return suffix_of(name) in TABLE_SUFFIXES


def names_tar(address: str) -> bool:
    """True for an address of a tar."""
    return path_of(address).lower().endswith(TAR_SUFFIX)


def resolve(address: str, base: str) -> str:
    """Address of a table's row; a relative one starts at the table's folder `base`."""
    address = normalised(address)
    if protocol_of(address) != "file":
        return address
    path = address.removeprefix("file://")
    if os.path.isabs(path):
        return os.path.normpath(path)
    return os.path.normpath(f"{base}/{path}") if protocol_of(base) == "file" else resolved(base, path)
