"""One planned sample in, what the tokenizers read of it out: pictures and motion of one size each, and its text.

`prepare_row` is called in a child process. It knows nothing of torch, so that the child starts fast.
"""

import functools
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from videolavit.media import CLIP_FRAMES, MediaError, motion_features
from videolavit.media.errors import SourceMissing, SourceUnreadable
from videolavit.media.resize import resize_picture

from .corpus import CorpusSettings
from .inputs import resolve
from .pictures import MAX_FILE_BYTES, ImageTooLarge, decode_image
from .reading import SourceChanged, TableReader
from .samples import SampleSettings, decode_picture, decompose_row, stored_clips
from .schema import WORK_SECONDS
from .storage import StorageSettings, open_source
from .token_plan import expand_source

MAX_TEXT_BYTES = 16 << 20


class NotAText(MediaError):
    """The bytes are not UTF-8."""


class EmptyText(MediaError):
    """Nothing, or nothing but spaces."""


class TextTooLarge(MediaError):
    """Above the limit; to be cut into documents first."""


class NothingInside(MediaError):
    """A tar without samples."""


@dataclass(frozen=True)
class PrepareSettings:
    """What the tokenizers read, and how a video becomes clips.

    Args:
        sample: How videos are decomposed.
        corpus: How inputs were read.
        picture_size: Side of a picture in pixels.
        motion_size: Height and width of a motion grid.
    """

    sample: SampleSettings
    corpus: CorpusSettings
    picture_size: int
    motion_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample, ready for the tokenizers.

    Attributes:
        pictures: uint8 [clips, size, size, 3].
        motion: float32 [clips, 2, 24, *motion_size]; [0, ...] of an image or a text.
        end_seconds: Where a video's segment ends, or None.
        work_seconds: Core-seconds of its decomposition.
    """

    text: str | None
    pictures: NDArray[np.uint8]
    motion: NDArray[np.float32]
    end_seconds: float | None = None
    work_seconds: float = 0.0


def prepare_row(row: dict[str, Any], settings: PrepareSettings, storage: StorageSettings) -> Prepared:
    """Prepares a planned sample.

    Args:
        row: Of a plan (`schema.TOKEN_PLAN`).

    Raises:
        MediaError: the typed reason why there is none.
    """
    kind = row["kind"]
    if kind == "text":
        return _prepared(_text_of(row, storage), [], [], settings)
    if kind == "image":
        text = _read_text(row["text_url"], storage) if row["text_url"] else row["text"]
        picture = decode_image(image_bytes(row, storage, _tables(storage)), settings.picture_size)
        return _prepared(text, [picture], [], settings)
    if kind == "tar" or (kind == "clips" and row["row"] is None):
        _explain(row, settings, storage)
    table = decompose_row(row, settings.sample, storage) if kind == "video" else _stored_row(row, storage)
    return _of_clips(table, row["text"], settings)


def _of_clips(table: pa.Table, text: str | None, settings: PrepareSettings) -> Prepared:
    """Prepares a row of a clip shard."""
    width, height = table["width"][0].as_py(), table["height"][0].as_py()
    pictures, motion = [], []
    for keyframe, grids in stored_clips(table["clips"].combine_chunks()):
        pictures.append(resize_picture(decode_picture(keyframe), settings.picture_size, settings.picture_size))
        motion.append(motion_features(grids, width, height, settings.motion_size))
    work = float((table.schema.metadata or {}).get(WORK_SECONDS, b"0"))
    return _prepared(text, pictures, motion, settings, end_seconds=table["end_seconds"][0].as_py(), work_seconds=work)


def _prepared(
    text: str | None,
    pictures: list[NDArray[np.uint8]],
    motion: list[NDArray[np.float32]],
    settings: PrepareSettings,
    **further: Any,
) -> Prepared:
    size = settings.picture_size
    return Prepared(
        text,
        np.array(pictures, np.uint8).reshape(-1, size, size, 3),
        np.array(motion, np.float32).reshape(-1, 2, CLIP_FRAMES, *settings.motion_size),
        **further,
    )


def _explain(row: dict[str, Any], settings: PrepareSettings, storage: StorageSettings) -> NoReturn:
    """Raises why a tar or clip shard was planned as a whole and not sample by sample."""
    if expand_source(row, storage, settings.corpus).num_rows:
        raise SourceUnreadable(f"{row['url']} could not be listed when it was planned; retry it")
    raise NothingInside("a tar without videos or images")


def image_bytes(row: dict[str, Any], storage: StorageSettings, tables: TableReader) -> bytes:
    """The image file of a listed image (a row of `corpus.SOURCES`). Raises MediaError."""
    if row["row"] is None:
        return _read(row, storage, MAX_FILE_BYTES, ImageTooLarge)
    value = tables.row(row["url"], row["row"], [row["column"]])[row["column"]][0].as_py()
    if isinstance(value, dict):
        if value["bytes"] is None and value.get("path"):
            named = row | {"url": resolve(value["path"], row["url"].rsplit("/", 1)[0])}
            return _read(named, storage, MAX_FILE_BYTES, ImageTooLarge)
        value = value["bytes"]
    if value is None:
        raise SourceMissing(f"row {row['row']} of {row['url']} has no image")
    return bytes(value)


def _text_of(row: dict[str, Any], storage: StorageSettings) -> str:
    inline = row["row"] is not None
    text = row["text"] or "" if inline else _decoded(_read(row, storage, MAX_TEXT_BYTES, TextTooLarge))
    if not text.strip():
        raise EmptyText("nothing but spaces" if text else "no text")
    return text


def _read_text(url: str, storage: StorageSettings) -> str | None:
    row = {"url": url, "offset": None, "length": None}
    return _decoded(_read(row, storage, MAX_TEXT_BYTES, TextTooLarge)).strip() or None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotAText(f"not UTF-8: {error}") from None


def _read(row: dict[str, Any], storage: StorageSettings, limit: int, too_large: type[MediaError]) -> bytes:
    with open_source(row["url"], storage, row["offset"] or 0, row["length"]) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise too_large(f"more than {limit >> 20} MiB")
    return data


# ---- rows of Parquet files ----------------------------------------------------------------------------------------


def _stored_row(row: dict[str, Any], storage: StorageSettings) -> pa.Table:
    """A row of a clip shard."""
    columns = ("sample_id", "end_seconds", "width", "height", "clips")
    table = _tables(storage).row(row["url"], row["row"], columns)
    if table["sample_id"][0].as_py() != row["sample_id"]:
        raise SourceChanged(f"row {row['row']} of {row['url']} is another sample than when it was planned")
    return table


@functools.lru_cache(maxsize=1)
def _tables(storage: StorageSettings) -> TableReader:
    """A plan keeps neighbours together, so that the last row group is enough."""
    return TableReader(storage)
