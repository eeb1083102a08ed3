"""What a user may name as input, as one table of sources: folders, globs, manifests, tars, single files."""

import contextlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from videolavit.media.errors import MediaError, UnknownFormat

from . import schema
from .storage import StorageSettings, absolute_url, filesystem, naming_location, open_source, protocol_of

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
"""Files beside videos in a folder that are no input. Everything else is tried, and rejected if it is no video."""

MANIFESTS = frozenset({".parquet", ".jsonl", ".csv"})
TAR = ".tar"
VIDEO_MEMBERS = frozenset(
    {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".3gp"}
)

EXTRA = "extra."
"""Prefix of a manifest's further columns on their way to the shards."""

TAR_JSON = f"{EXTRA}tar_json"
"""Column of the `.json` neighbours of a tar's videos."""

SOURCES = pa.schema([("source", pa.string()), ("url", pa.string()), ("text", pa.string())])
"""Columns of a source table; a manifest's further columns follow, prefixed."""


class InputError(ValueError):
    """The input that the user named cannot be used as a whole; the message names the fix."""


def list_sources(inputs: Iterable[str], storage: StorageSettings, text_column: str | None = None) -> pa.Table:
    """Lists what is to be decomposed, without opening any video.

    Args:
        inputs: Folders, globs, manifests (Parquet, JSONL, CSV), tars or video files, on any fsspec location.
        text_column: Caption column of a manifest; by default `text`, or else `caption`.

    Returns:
        Table of SOURCES and the manifest's further columns; sources named twice appear once.

    Raises:
        InputError: nothing there, or a manifest that cannot be used.
        StorageError: the location cannot be used.
    """
    tables = [_list_one(url, storage, text_column) for url in inputs]
    try:
        table = pa.concat_tables(tables, promote_options="permissive") if tables else SOURCES.empty_table()
    except pa.ArrowException as error:
        raise InputError(f"the manifests do not fit together: {error}") from None
    if table.num_rows == 0:
        raise InputError(f"no video found in {', '.join(inputs) or 'the input'}; name a folder, glob, manifest or tar")
    return without_repeats(table, "url")


def without_repeats(table: pa.Table, column: str) -> pa.Table:
    """The first row of each value."""
    first: dict[str, int] = {}
    for index, value in enumerate(table[column].to_pylist()):
        first.setdefault(value, index)
    return table.take(list(first.values()))


def _list_one(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    listing = list_files(url, storage)
    files = [
        address
        for name, address in listing.files
        if listing.named == "file" or is_media(name) or (listing.named == "glob" and is_table(name))
    ]
    plain = [file for file in files if not is_table(file)]
    videos = pa.table({"source": plain, "url": plain, "text": pa.nulls(len(plain), pa.string())}, schema=SOURCES)
    tables = [_read_manifest(file, storage, text_column) for file in files if is_table(file)]
    return together([*tables, videos], url)


def together(tables: list[pa.Table], url: str) -> pa.Table:
    """The sources of one input as one table."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the manifests in {url} do not fit together: {error}") from None


@dataclass(frozen=True)
class Listing:
    """Files that an input names.

    Attributes:
        named: How they are named.
        files: Names below what was named, and addresses, in the order of names.
    """

    named: Literal["file", "folder", "glob"]
    files: list[tuple[str, str]]


def list_files(url: str, storage: StorageSettings) -> Listing:
    """Finds what an input names; nothing is opened.

    Raises:
        InputError: nothing is there.
        StorageError: the location cannot be used.
    """
    fs, path = filesystem(absolute_url(url), storage)
    prefix = "" if protocol_of(url) == "file" else f"{protocol_of(url)}://"
    wildcard = re.search(r"[*?\[]", path)
    named: Literal["file", "folder", "glob"]
    with naming_location(url):
        if wildcard and not fs.exists(path):
            base = path[: wildcard.start()].rpartition("/")[0]
            found, named = fs.glob(path, detail=True), "glob"
        elif fs.isdir(path):
            base = path
            found, named = fs.find(path, detail=True), "folder"
        elif fs.isfile(path):
            base = path.rpartition("/")[0]
            found, named = {path: fs.info(path)}, "file"
        else:
            raise InputError(f"no such file, folder or key: {url}")
    # What an object store lists as `name/` is a folder's marker. A name that is no UTF-8 cannot be opened by name; it
    # is kept in a readable form and will be rejected.
    names = [
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for name, info in sorted(found.items())
        if info["type"] != "directory" and not name.endswith("/")
    ]
    return Listing(named, [(name.removeprefix(base), prefix + name) for name in names])


def suffix_of(path: str) -> str:
    """The suffix of a file's name in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def is_media(name: str) -> bool:
    """Whether a file in a named folder is tried; nothing below a hidden name is."""
    return suffix_of(name) not in SIDECARS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def is_table(name: str) -> bool:
    """Whether a file is a manifest by its name."""
    return suffix_of(name) in MANIFESTS


# ---- manifests ----------------------------------------------------------------------------------------------------


AS_WRITTEN = frozenset({"video", "image", "text", "caption"})
"""Columns that are taken as they are written, not as numbers or dates."""


def _read_manifest(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    with naming_table(url), open_source(url, storage) as file:
        table = parse_table(file.read(), suffix_of(url))
        return addressed_sources(table, url, "video", text_column, schema.CLIPS.names)


@contextlib.contextmanager
def naming_table(url: str) -> Iterator[None]:
    """Turns what goes wrong with a table into an InputError that names it."""
    try:
        yield
    except (MediaError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the manifest {url}: {error}") from None


def parse_table(data: bytes, suffix: str) -> pa.Table:
    """Reads a manifest of any of the formats."""
    source = io.BytesIO(data)
    if suffix == ".parquet":
        return pq.read_table(source)
    if suffix == ".csv":
        as_written = pa.csv.ConvertOptions(column_types=dict.fromkeys(AS_WRITTEN, pa.string()))
        return pa.csv.read_csv(source, convert_options=as_written)
    present = set(re.findall(r'"([^"\\]+)"\s*:', data.decode()))
    as_text = pa.schema([(name, pa.string()) for name in sorted(AS_WRITTEN & present)])
    return pa.json.read_json(
        source,
        read_options=pa.json.ReadOptions(block_size=max(len(data), 1 << 20)),  # a line must fit into a block
        parse_options=pa.json.ParseOptions(explicit_schema=as_text),
    )


def addressed_sources(
    table: pa.Table, url: str, column: str, text_column: str | None, reserved: Sequence[str]
) -> pa.Table:
    """The sources of a table whose `column` holds addresses; relative ones start at the table's folder.

    Args:
        url: Of the table.
        reserved: Columns of the shards, which further columns must not have.
    """
    text, extra = described_by(table, url, column, text_column, reserved)
    addresses = plain_column(table[column], column, url)
    if not pa.types.is_string(addresses.type):
        raise InputError(f"the column `{column}` of {url} holds {addresses.type}, not addresses")
    base = url.rsplit("/", 1)[0]
    resolved = [
        resolve(address, base) if address else f"{url}#row{row}"  # kept, to be rejected
        for row, address in enumerate(addresses.to_pylist())
    ]
    sources = pa.array(resolved, pa.string())
    return pa.table({"source": sources, "url": sources, "text": text, **extra})


def described_by(
    table: pa.Table, url: str, column: str | None, text_column: str | None, reserved: Sequence[str]
) -> tuple[pa.Array | pa.ChunkedArray, dict[str, pa.ChunkedArray]]:
    """The captions of a table's rows, and its further columns under the names that they have in a plan."""
    names = table.column_names
    if len(set(names)) < len(names):
        raise InputError(f"the manifest {url} has a column twice: {', '.join(names)}")
    for needed in (column, text_column):
        if needed is not None and needed not in names:
            raise InputError(f"the manifest {url} has no column `{needed}`; it has {', '.join(names)}")
    text = text_column or next((name for name in ("text", "caption") if name in names), None)
    extra: dict[str, pa.ChunkedArray] = {}
    for name in names:
        if name in (column, text):
            continue
        shard_name = f"manifest_{name}" if name in reserved else name
        if EXTRA + shard_name in extra:
            raise InputError(f"the manifest {url} has both `{name}` and `{shard_name}`; rename one")
        extra[EXTRA + shard_name] = plain_column(table[name], name, url)
    return table[text].cast(pa.string()) if text else pa.nulls(table.num_rows, pa.string()), extra


def plain_column(column: pa.ChunkedArray, name: str, url: str) -> pa.ChunkedArray:
    """The column in a plain type that every reader of Parquet knows."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type), name, url)
    if pa.types.is_null(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    if not _is_plain(kind):
        raise InputError(f"the column `{name}` of {url} is {kind}; write it as text, numbers, lists or structs")
    if pa.types.is_timestamp(kind):
        try:
            pc.min_max(column).as_py()
        except (ValueError, OverflowError) as error:
            raise InputError(f"the column `{name}` of {url} holds a time out of range: {error}") from None
    return column


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    checks = (
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_string,
        pa.types.is_binary,
        pa.types.is_date,
        pa.types.is_timestamp,
        pa.types.is_null,
    )
    return any(check(kind) for check in checks)


def resolve(address: str, base: str) -> str:
    """A manifest's address as a source: relative ones start at the manifest's folder."""
    if protocol_of(address) == "file":
        path = address.removeprefix("file://")
        if os.path.isabs(path):
            return os.path.normpath(path)
        relative = path.removeprefix("./")
        return os.path.normpath(f"{base}/{relative}") if protocol_of(base) == "file" else f"{base}/{relative}"
    return address


# ---- tars ---------------------------------------------------------------------------------------------------------


def tar_members(url: str, storage: StorageSettings, suffixes: frozenset[str] = VIDEO_MEMBERS) -> list[dict[str, Any]]:
    """The samples of a WebDataset tar: byte ranges of members, captions from `.txt` or `.json` neighbours.

    Args:
        suffixes: Of the members that are samples.

    Returns:
        Rows with `source` (`TAR/MEMBER`), `url`, `offset`, `length`, `text`, and the `.json` as it is.

    Raises:
        MediaError: it is missing, or no uncompressed tar.
    """
    found: list[tuple[str, tarfile.TarInfo]] = []
    neighbours: dict[tuple[str, str], str] = {}
    with open_source(url, storage) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    key, suffix = _webdataset_key(member.name)
                    if member.isfile() and suffix in suffixes:
                        found.append((key, member))
                    elif member.isfile() and suffix in (".txt", ".json") and (content := archive.extractfile(member)):
                        neighbours[key, suffix] = content.read().decode("utf-8", "replace")
        except tarfile.TarError as error:
            raise UnknownFormat(f"not a readable tar ({error}); a compressed tar must be unpacked first") from None
    return [
        {
            "source": f"{url}/{member.name}",
            "url": url,
            "offset": member.offset_data,
            "length": member.size,
            "text": _caption(neighbours.get((key, ".txt")), neighbours.get((key, ".json"))),
            TAR_JSON: neighbours.get((key, ".json")),
        }
        for key, member in found
    ]


def _webdataset_key(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}", suffix_of(file)


def _caption(text: str | None, described: str | None) -> str | None:
    if text is None and described is not None:
        with contextlib.suppress(ValueError):
            values = json.loads(described)
            if isinstance(values, dict):
                text = next((values[key] for key in ("text", "caption") if isinstance(values.get(key), str)), None)
    return text.strip() or None if text else None
