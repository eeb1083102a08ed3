"""What a user may name as input, as one table of sources: folders, globs, manifests, tars, single files."""

import contextlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from typing import Any

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
    first: dict[str, int] = {}
    for index, url in enumerate(table["url"].to_pylist()):
        first.setdefault(url, index)
    return table.take(list(first.values()))


def _list_one(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    fs, path = filesystem(absolute_url(url), storage)
    prefix = "" if protocol_of(url) == "file" else f"{protocol_of(url)}://"
    wildcard = re.search(r"[*?\[]", path)
    with naming_location(url):
        if wildcard and not fs.exists(path):
            base = path[: wildcard.start()].rpartition("/")[0]
            found, wanted = fs.glob(path, detail=True), _is_input_or_manifest
        elif fs.isdir(path):
            base = path
            found, wanted = fs.find(path, detail=True), _is_input
        elif fs.isfile(path):
            base = ""
            found, wanted = {path: fs.info(path)}, _is_anything
        else:
            raise InputError(f"no such file, folder or key: {url}")
    # What an object store lists as `name/` is a folder's marker. A name that is no UTF-8 cannot be opened by name; it
    # is kept in a readable form and will be rejected.
    files = [
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for name, info in sorted(found.items())
        if info["type"] != "directory" and not name.endswith("/") and wanted(name.removeprefix(base))
    ]
    manifests = [file for file in files if _suffix(file) in MANIFESTS]
    plain = [prefix + file for file in files if _suffix(file) not in MANIFESTS]
    videos = pa.table({"source": plain, "url": plain, "text": pa.nulls(len(plain), pa.string())}, schema=SOURCES)
    tables = [_read_manifest(prefix + file, storage, text_column) for file in manifests]
    try:
        return pa.concat_tables([*tables, videos], promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(f"the manifests in {url} do not fit together: {error}") from None


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_input(name: str) -> bool:
    """Whether a file in a named folder is tried; nothing below a hidden name is."""
    return _suffix(name) not in SIDECARS and not any(part.startswith(".") for part in name.split("/"))


def _is_input_or_manifest(name: str) -> bool:
    return _is_input(name) or _suffix(name) in MANIFESTS


def _is_anything(name: str) -> bool:
    return True


# ---- manifests ----------------------------------------------------------------------------------------------------


_TEXTS = {"video", "text", "caption"}


def _read_manifest(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    try:
        with open_source(url, storage) as file:
            data = file.read()
        return _sources_of(_parse_manifest(data, _suffix(url)), url, text_column)
    except (MediaError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the manifest {url}: {error}") from None


def _parse_manifest(data: bytes, suffix: str) -> pa.Table:
    """Reads a table; addresses and captions are taken as they are written, not as numbers or dates."""
    source = io.BytesIO(data)
    if suffix == ".parquet":
        return pq.read_table(source)
    if suffix == ".csv":
        as_written = pa.csv.ConvertOptions(column_types=dict.fromkeys(_TEXTS, pa.string()))
        return pa.csv.read_csv(source, convert_options=as_written)
    present = set(re.findall(r'"([^"\\]+)"\s*:', data.decode()))
    as_text = pa.schema([(name, pa.string()) for name in sorted(_TEXTS & present)])
    return pa.json.read_json(
        source,
        read_options=pa.json.ReadOptions(block_size=max(len(data), 1 << 20)),  # a line must fit into a block
        parse_options=pa.json.ParseOptions(explicit_schema=as_text),
    )


def _sources_of(table: pa.Table, url: str, text_column: str | None) -> pa.Table:
    names = table.column_names
    if len(set(names)) < len(names):
        raise InputError(f"the manifest {url} has a column twice: {', '.join(names)}")
    for needed in ("video", text_column):
        if needed is not None and needed not in names:
            raise InputError(f"the manifest {url} has no column `{needed}`; it has {', '.join(names)}")
    text = text_column or next((name for name in ("text", "caption") if name in names), None)
    if not pa.types.is_string(_plain(table["video"], "video", url).type):
        raise InputError(f"the column `video` of {url} holds {table['video'].type}, not addresses")
    base = url.rsplit("/", 1)[0]
    videos = [
        _resolve(video, base) if video else f"{url}#row{row}"  # kept, to be rejected
        for row, video in enumerate(_plain(table["video"], "video", url).to_pylist())
    ]
    columns: dict[str, Any] = {
        "source": pa.array(videos, pa.string()),
        "url": pa.array(videos, pa.string()),
        "text": table[text].cast(pa.string()) if text else pa.nulls(table.num_rows, pa.string()),
    }
    for name in names:
        if name in ("video", text):
            continue
        shard_name = f"manifest_{name}" if name in schema.CLIPS.names else name
        if EXTRA + shard_name in columns:
            raise InputError(f"the manifest {url} has both `{name}` and `{shard_name}`; rename one")
        columns[EXTRA + shard_name] = _plain(table[name], name, url)
    return pa.table(columns)


def _plain(column: pa.ChunkedArray, name: str, url: str) -> pa.ChunkedArray:
    """The column in a plain type that every reader of Parquet knows."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type), name, url)
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


def _resolve(video: str, base: str) -> str:
    """A manifest's address as a source: relative ones start at the manifest's folder."""
    if protocol_of(video) == "file":
        path = video.removeprefix("file://")
        if os.path.isabs(path):
            return os.path.normpath(path)
        relative = path.removeprefix("./")
        return os.path.normpath(f"{base}/{relative}") if protocol_of(base) == "file" else f"{base}/{relative}"
    return video


# ---- tars ---------------------------------------------------------------------------------------------------------


def tar_members(url: str, storage: StorageSettings) -> list[dict[str, Any]]:
    """The video samples of a WebDataset tar: byte ranges of the videos, captions from `.txt` or `.json` neighbours.

    Returns:
        Rows with `source` (`TAR/MEMBER`), `url`, `offset`, `length`, `text`, and the `.json` as it is.

    Raises:
        MediaError: it is missing, or no uncompressed tar.
    """
    videos: list[tuple[str, tarfile.TarInfo]] = []
    neighbours: dict[tuple[str, str], str] = {}
    with open_source(url, storage) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    key, suffix = _webdataset_key(member.name)
                    if member.isfile() and suffix in VIDEO_MEMBERS:
                        videos.append((key, member))
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
        for key, member in videos
    ]


def _webdataset_key(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}", _suffix(file)


def _caption(text: str | None, described: str | None) -> str | None:
    if text is None and described is not None:
        with contextlib.suppress(ValueError):
            values = json.loads(described)
            if isinstance(values, dict):
                text = next((values[key] for key in ("text", "caption") if isinstance(values.get(key), str)), None)
    return text.strip() or None if text else None
