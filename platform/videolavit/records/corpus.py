"""What may be tokenized, as one table of sources: clip runs, videos, images, texts, tables and tars of them."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from . import inputs, schema
from .inputs import EXTRA, SIDECARS, TAR, VIDEO_MEMBERS, InputError, is_hidden, is_table, suffix_of
from .storage import Folder, StorageError, StorageSettings, open_source

IMAGE_MEMBERS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".jfif"}
)
TEXTS = frozenset({".txt", ".md"})

SOURCES = pa.schema(
    [
        *inputs.SOURCES,
        ("kind", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("text_url", pa.string()),
    ]
)
"""Columns of a source table: those of `schema.TOKEN_PLAN`. A manifest's further columns follow, prefixed."""

RESERVED = frozenset({*schema.CLIPS.names, *schema.TOKENS.names, "num_pictures", "num_motions"})
"""Names that a further column cannot have in a token shard, or on its way there, through clips or not."""

_MEMBERS = {"video": VIDEO_MEMBERS, "image": IMAGE_MEMBERS, "auto": VIDEO_MEMBERS | IMAGE_MEMBERS}


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """How inputs are read. It decides what is planned, not how a sample is tokenized.

    Args:
        modality: What the inputs hold; `auto` looks at names and columns. With another, every file that is no sidecar
            is tried as one of this kind.
        text_column: Caption or text column of tables; by default `text`, or else `caption`.
        image_column: Column of tables that has addresses of images, their bytes, or structs with `bytes`.
    """

    modality: Literal["auto", "video", "image", "text"] = "auto"
    text_column: str | None = None
    image_column: str = "image"

    def members(self) -> frozenset[str]:
        """Suffixes of a tar's members that are samples."""
        return _MEMBERS[self.modality]


def list_corpus(named: Iterable[str], storage: StorageSettings, settings: CorpusSettings) -> pa.Table:
    """Lists what is to be tokenized, without opening a video, image or text.

    Args:
        named: Folders of decompose runs, clip shards; folders, globs, tables, tars and files of videos, images, texts.

    Returns:
        Table of SOURCES and further columns; sources named twice appear once.

    Raises:
        InputError: nothing is there, or what is there cannot be used.
        StorageError: the location cannot be used.
    """
    tables = [_list_one(url.rstrip("/") or url, storage, settings) for url in named]
    table = inputs.together([SOURCES.empty_table(), *tables], ", ".join(named))
    return inputs.without_repeats(table, "source")


def _list_one(url: str, storage: StorageSettings, settings: CorpusSettings) -> pa.Table:
    if _is_clip_run(url, storage):
        _check_modality(url, "a run of clips", "video", settings)
        run = Folder(url, storage)
        return _plain([f"{run.url}/clips/{name}" for name in run.names("clips", ".parquet")], "clips")
    listing = inputs.list_files(url, storage)
    texts_are_named = settings.modality == "text" or (listing.named != "folder" and suffix_of(url) in TEXTS)
    sidecars = SIDECARS - TEXTS if texts_are_named else SIDECARS
    files = [
        (name, address)
        for name, address in listing.files
        if listing.named == "file" or (not is_hidden(name) and (suffix_of(name) not in sidecars or is_table(name)))
    ]
    media = [(name, address) for name, address in files if not is_table(name)]
    if listing.named == "folder" and media and settings.modality != "text":
        files = media  # tables beside media describe them; a folder of tables is a corpus of its own
    if not files:
        hint = "name a folder, glob, table, tar or run; --modality text takes .txt files in a folder"
        raise InputError(f"nothing to tokenize in {url}; {hint}")
    captions = {address for _, address in listing.files if suffix_of(address) == ".txt"}
    parts = [_files([address for _, address in media], captions, settings)] if media else []
    parts += [_table(address, storage, settings) for _, address in files if is_table(address)]
    return inputs.together(parts, url)


def _is_clip_run(url: str, storage: StorageSettings) -> bool:
    """Whether a folder is what `videolavit decompose` made.

    Raises:
        InputError: it is a run of another kind.
    """
    try:
        found = Folder(url, storage).read("run.json")
        identity = json.loads(found)["identity"] if found else None
    except (ValueError, KeyError, TypeError, StorageError):
        return False
    if identity and identity.get("kind", "clips") != "clips":
        raise InputError(f"{url} is a run of {identity['kind']}, which cannot be tokenized")
    return identity is not None


def _check_modality(url: str, what: str, is_of: str, settings: CorpusSettings) -> None:
    if settings.modality not in ("auto", is_of):
        raise InputError(f"{url} is {what}; it goes with --modality auto or {is_of}, not {settings.modality}")


def _plain(urls: list[str], kind: str) -> pa.Table:
    columns = {name: pa.nulls(len(urls), SOURCES.field(name).type) for name in SOURCES.names}
    return pa.table(columns | {"source": urls, "url": urls, "kind": [kind] * len(urls)}, schema=SOURCES)


def _files(addresses: list[str], captions: set[str], settings: CorpusSettings) -> pa.Table:
    """Files as sources; an image's caption is in the `.txt` file of its name."""
    rows = []
    for address in addresses:
        kind = _kind_of_file(address, settings)
        caption = f"{os.path.splitext(address)[0]}.txt"
        text_url = caption if kind == "image" and caption in captions else None
        rows.append({"source": address, "url": address, "kind": kind, "text_url": text_url})
    return pa.Table.from_pylist(rows, schema=SOURCES)


def _kind_of_file(address: str, settings: CorpusSettings) -> str:
    suffix = suffix_of(address)
    if suffix == TAR:
        if settings.modality == "text":
            raise InputError(f"{address}: texts in tars are not read; unpack it")
        return "tar"
    if settings.modality != "auto":
        return settings.modality
    return "image" if suffix in IMAGE_MEMBERS else "text" if suffix in TEXTS else "video"


# ---- tables -------------------------------------------------------------------------------------------------------


def _table(url: str, storage: StorageSettings, settings: CorpusSettings) -> pa.Table:
    with inputs.naming_table(url), open_source(url, storage) as file:
        if suffix_of(url) != ".parquet":
            return _sources(inputs.parse_table(file.read(), suffix_of(url)), url, settings)
        parquet = pq.ParquetFile(file)
        own = schema.kind_of(parquet.schema_arrow)
        if own == "clips":
            _check_modality(url, "a clip shard", "video", settings)
            return _plain([url], "clips")
        if own:
            raise InputError(f"{url} is a table of a run ({own}); name the run's folder or its clips")
        return _sources(_without_bytes(parquet, settings.image_column), url, settings)


def _without_bytes(parquet: pq.ParquetFile, column: str) -> pa.Table:
    """The table; a column of image bytes comes as nulls of its type."""
    fields = parquet.schema_arrow
    index = fields.get_field_index(column)
    if index < 0 or not holds_bytes(fields.field(index).type):
        return parquet.read()
    others = parquet.read(columns=[name for name in fields.names if name != column])
    return others.append_column(column, pa.nulls(parquet.metadata.num_rows, fields.field(index).type))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds image files: as binary, or as structs that have `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _sources(table: pa.Table, url: str, settings: CorpusSettings) -> pa.Table:
    kind = _kind_of_table(table.column_names, url, settings)
    column = {"video": "video", "image": settings.image_column, "text": None}[kind]
    if column is not None and not (column in table.column_names and holds_bytes(table.schema.field(column).type)):
        sources = inputs.addressed_sources(table, url, column, settings.text_column, sorted(RESERVED))
        rows = pa.nulls(table.num_rows, pa.int64())
        kinds = ["tar" if suffix_of(url) == TAR else kind for url in sources["url"].to_pylist()]
    else:
        text, extra = inputs.described_by(table, url, column, settings.text_column, sorted(RESERVED))
        names = pa.array([f"{url}#row{row}" for row in range(table.num_rows)], pa.string())
        holder = pa.array([column] * table.num_rows, pa.string())
        sources = pa.table({"source": names, "url": [url] * table.num_rows, "text": text, "column": holder, **extra})
        rows, kinds = pa.array(range(table.num_rows), pa.int64()), [kind] * table.num_rows
    return sources.append_column("kind", pa.array(kinds, pa.string())).append_column("row", rows)


def _kind_of_table(names: list[str], url: str, settings: CorpusSettings) -> str:
    if settings.modality in ("video", "image"):
        return settings.modality
    found = [kind for kind, name in (("video", "video"), ("image", settings.image_column)) if name in names]
    if settings.modality == "text":
        found = []
    if len(found) > 1:
        raise InputError(f"the table {url} has videos and images; say which with --modality video or image")
    text = settings.text_column or "text"
    if not found and not {text, "caption"} & set(names):
        raise InputError(
            f"the table {url} has none of the columns `video`, `{settings.image_column}`, `{text}`; "
            f"it has {', '.join(names)}"
        )
    return found[0] if found else "text"


def extra_of(fields: pa.Schema, own: frozenset[str]) -> dict[str, str]:
    """A clip shard's further columns: their names there, and in a plan."""
    return {
        name: EXTRA + (f"manifest_{name}" if name in RESERVED else name) for name in fields.names if name not in own
    }
