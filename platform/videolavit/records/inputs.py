"""What a user may name as input, as one table of sources: folders, globs, manifests, tars, single files."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from videolavit.media.errors import MediaError, UnknownFormat

from .storage import StorageSettings, absolute_url, filesystem, naming_location, open_source

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
        InputError: nothing there, or a manifest without a `video` column.
        StorageError: the location cannot be used.
    """
    tables = [_list_one(url, storage, text_column) for url in inputs]
    table = pa.concat_tables(tables, promote_options="permissive") if tables else SOURCES.empty_table()
    if table.num_rows == 0:
        raise InputError(f"no video found in {', '.join(inputs) or 'the input'}; name a folder, glob, manifest or tar")
    first: dict[str, int] = {}
    for index, url in enumerate(table["url"].to_pylist()):
        first.setdefault(url, index)
    return table.take(sorted(first.values()))


def _list_one(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    fs, path = filesystem(absolute_url(url), storage)
    protocol = fsspec.utils.get_protocol(url)
    prefix = "" if protocol == "file" else f"{protocol}://"
    with naming_location(url):
        if re.search(r"[*?\[]", path) and not fs.exists(path):
            files = fs.glob(path)
        elif fs.isdir(path):
            files = [file for file in fs.find(path) if _is_input(file[len(path) :])]
        elif fs.isfile(path):
            files = [path]
        else:
            raise InputError(f"no such file, folder or key: {url}")
    named_directly = len(files) == 1 and files[0] == path
    tables = []
    plain: list[str] = []
    for file in sorted(files):
        if _suffix(file) in MANIFESTS and (named_directly or "*" in path):
            tables.append(_read_manifest(prefix + file, storage, text_column))
        elif named_directly or _is_input(file):
            plain.append(prefix + file)
    tables.append(pa.table({"source": plain, "url": plain, "text": pa.nulls(len(plain), pa.string())}, schema=SOURCES))
    return pa.concat_tables(tables, promote_options="permissive")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_input(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/") if part)
    return not hidden and _suffix(path) not in SIDECARS


def _read_manifest(url: str, storage: StorageSettings, text_column: str | None) -> pa.Table:
    try:
        with open_source(url, storage) as file:
            data = io.BytesIO(file.read())
        if _suffix(url) == ".parquet":
            table = pq.read_table(data)
        elif _suffix(url) == ".csv":
            table = pa.csv.read_csv(data)
        else:
            table = pa.json.read_json(data)
    except (MediaError, pa.ArrowException) as error:
        raise InputError(f"cannot read the manifest {url}: {error}") from None
    if "video" not in table.column_names:
        raise InputError(f"the manifest {url} has no column `video`; it has {', '.join(table.column_names)}")
    if text_column is not None and text_column not in table.column_names:
        raise InputError(f"the manifest {url} has no column `{text_column}`; it has {', '.join(table.column_names)}")
    text = text_column or next((name for name in ("text", "caption") if name in table.column_names), None)
    base = url.rsplit("/", 1)[0]
    videos = [
        _resolve(str(video), base) if video is not None and video != "" else f"{url}#row{row}"
        for row, video in enumerate(table["video"].to_pylist())
    ]
    columns: dict[str, Any] = {
        "source": pa.array(videos, pa.string()),
        "url": pa.array(videos, pa.string()),
        "text": table[text].cast(pa.string()) if text else pa.nulls(table.num_rows, pa.string()),
    }
    columns |= {EXTRA + name: table[name] for name in table.column_names if name not in ("video", text)}
    return pa.table(columns)


def _resolve(video: str, base: str) -> str:
    if fsspec.utils.get_protocol(video) != "file" or os.path.isabs(video):
        return video
    return os.path.normpath(f"{base}/{video}") if "://" not in base else f"{base}/{video.removeprefix('./')}"


def tar_members(url: str, storage: StorageSettings) -> list[dict[str, Any]]:
    """The video samples of a WebDataset tar: byte ranges of the videos, captions from `.txt` or `.json` neighbours.

    Returns:
        Rows with `source` (`TAR/MEMBER`), `url`, `offset`, `length`, `text`, and `extra.json` where there is one.

    Raises:
        MediaError: it is missing, or no uncompressed tar.
    """
    samples: dict[str, dict[str, Any]] = {}
    with open_source(url, storage) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isfile():
                        continue
                    key, suffix = _webdataset_key(member.name)
                    sample = samples.setdefault(key, {})
                    if suffix in VIDEO_MEMBERS:
                        sample |= {"source": f"{url}/{member.name}"}
                        sample |= {"offset": member.offset_data, "length": member.size}
                    elif suffix in (".txt", ".json") and (content := archive.extractfile(member)):
                        sample[suffix] = content.read().decode("utf-8", "replace")
        except tarfile.TarError as error:
            raise UnknownFormat(f"not a readable tar ({error}); a compressed tar must be unpacked first") from None
    return [_tar_row(url, sample) for sample in samples.values() if "source" in sample]


def _webdataset_key(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, _ = file.partition(".")
    return f"{folder}/{stem}", _suffix(file)


def _tar_row(url: str, sample: dict[str, Any]) -> dict[str, Any]:
    text = sample.get(".txt")
    if text is None and ".json" in sample:
        try:
            described = json.loads(sample[".json"])
        except ValueError:
            described = None
        if isinstance(described, dict):
            text = next((described[name] for name in ("text", "caption") if isinstance(described.get(name), str)), None)
    row = {"source": sample["source"], "url": url, "offset": sample["offset"], "length": sample["length"]}
    return row | {"text": text.strip() if text else None, EXTRA + "json": sample.get(".json")}
