"""Ranges of videos: manifests in which a row is a piece of a video, or a list of pieces.

video,start,end,text
a.mp4,0:00:12.5,0:00:19.2,a dog runs
b.mp4,"[0, 7.5]","[3, 11]","['a door opens', 'a cat sits']"
"""

import ast
import contextlib
import functools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.media.errors import StreamEnded, TooFewFrames

from ..files import InputError
from ..identity import identifying_settings, range_id, sample_id
from ..inputs import InputSettings
from ..plan import clip_seconds, segment_seconds
from ..rows import PlanRow, Source, VideoSample, listing
from ..samples import SampleSettings
from ..storage import StorageSettings, open_file, reading
from ..tables import Table, caption_column, further_columns
from .manifest import row_addresses, row_name
from .video import VIDEO_COLUMN, VideoKind

RANGE_COLUMNS = RANGE_VIDEO, RANGE_START, RANGE_END = VIDEO_COLUMN, "start", "end"

MAX_SECONDS = 1e6
"""Times above are no times of a video: they are wrong by their unit."""

_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class BadRange(MediaError):
    """A row's start and end are no range of a video."""


class VideoRange(VideoKind):
    """A range of a video."""

    name = "range"
    text_columns = (RANGE_START, RANGE_END)
    extra = (pa.field("range_id", pa.string()),)
    shard_by = ("url",)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return (
            settings.may_be("video") and set(RANGE_COLUMNS) <= set(table.names) and not table.holds_bytes(RANGE_VIDEO)
        )

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        caption = caption_column(table, settings.text_column)
        further = further_columns(table, rows, (*RANGE_COLUMNS, caption), reserved)
        addresses = row_addresses(RANGE_VIDEO, table, rows, first).to_pylist()
        texts = rows[caption].to_pylist() if caption else [None] * rows.num_rows
        places: list[int] = []
        columns: dict[str, list[Any]] = {name: [] for name in ("source", "start_seconds", "end_seconds", "text")}
        for index, (address, start, end, text) in enumerate(
            zip(addresses, _times(table, rows, RANGE_START), _times(table, rows, RANGE_END), texts, strict=True)
        ):
            for number, values in enumerate(_pieces(start, end, text)):
                source = address
                if values is None:  # named by its row, so that each is a reject of its own
                    source, values = f"{row_name(table, first + index)}.{number}", (0.0, 0.0, None)
                places.append(index)
                for name, value in zip(columns, (source, *values), strict=True):
                    columns[name].append(value)
        urls = [addresses[index] for index in places]
        ids = [range_id(*one) for one in zip(*(columns[name] for name in list(columns)[:3]), strict=True)]
        extra = {name: column.take(pa.array(places, pa.int64())) for name, column in further.items()}
        named = {"url": urls, "kind": self.name, "key": ids}
        return listing({**columns, **named}, {**extra, "range_id": pa.array(ids, pa.string())})

    @contextlib.contextmanager
    def opened(self, source: Source, storage: StorageSettings) -> Iterator[BinaryIO]:
        with reading(source.url):
            yield _videos(storage).file(source.url)

    def header(self, source: Source, settings: SampleSettings, storage: StorageSettings) -> VideoInfo:
        return _header(source.url, settings, storage)

    def segments(
        self, source: Source, info: VideoInfo | None, settings: SampleSettings
    ) -> Sequence[tuple[float, float | None]]:
        """Starts and ends of the samples in the range, without those that would begin behind the end of the video."""
        start, end = source.start_seconds or 0.0, source.end_seconds or 0.0
        if info is None:
            return [(start, end)]
        length = segment_seconds(info, settings)
        count = max(math.ceil((end - start - clip_seconds(settings)) / length), 1)
        starts = [start + index * length for index in range(count)]
        segments = zip(starts, [*starts[1:], end], strict=True)
        return [one for one in segments if one[0] == start or info.seconds is None or one[0] < info.seconds]

    def sample_id(self, source: Source, start: float, end: float | None, settings: SampleSettings) -> str:
        return sample_id(source.source, start, identifying_settings(settings), end)

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        if row.start_seconds is None or row.end_seconds is None or row.end_seconds <= row.start_seconds:
            raise BadRange("its start and end are no range; write both in seconds or as hh:mm:ss.mmm, end above start")
        try:
            return super().clips(row, settings, storage)
        except StreamEnded:
            raise
        except TooFewFrames as error:
            raise TooFewFrames(f"from {row.start_seconds:g} to {row.end_seconds:g} s: {error}") from None


def _times(table: Table, rows: pa.Table, name: str) -> list[Any]:
    """Starts or ends of rows; durations and times of day in seconds."""
    column, kind = rows[name], rows[name].type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        raise InputError(f"the column `{name}` of {table.url} holds {kind}, not seconds or hh:mm:ss.mmm")
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        whole = pa.int32() if pa.types.is_time32(kind) else pa.int64()
        column = pc.divide(pc.cast(column.cast(whole), pa.float64()), _UNITS[kind.unit])
    return list(column.to_pylist())


def _pieces(start: Any, end: Any, text: Any) -> list[tuple[float, float, str | None] | None]:
    """Ranges and captions of a row; None for one that cannot be read."""
    starts, ends = _listed(start), _listed(end)
    if starts is None or ends is None:
        return [None if isinstance(text, list) else _piece(start, end, text)]
    texts = _listed(text)
    if texts is None:
        texts = [text] * len(starts)
    if not starts or len(starts) != len(ends) or len(starts) != len(texts):
        return [None]
    return [_piece(*one) for one in zip(starts, ends, texts, strict=True)]


def _piece(start: Any, end: Any, text: Any) -> tuple[float, float, str | None] | None:
    first, last = seconds_of(start), seconds_of(end)
    if first is None or last is None or last <= first:
        return None
    return first, last, None if text is None else str(text)


def _listed(value: Any) -> list[Any] | None:
    """A list, be it written as text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def seconds_of(value: Any) -> float | None:
    """Seconds of a number, or of text: `12.5`, `01:05`, `0:01:05.250`. None if it is no time of a video."""
    if isinstance(value, str):
        parts = value.strip().replace(",", ".").split(":")
        if len(parts) > 3 or not all(re.fullmatch(r"\d+", part) for part in parts[:-1]):
            return None
        if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", parts[-1]):
            return None
        value = sum(float(part) * 60.0**power for power, part in enumerate(reversed(parts)))
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return float(value) if 0 <= value <= MAX_SECONDS else None


@functools.lru_cache(maxsize=64)
def _header(url: str, settings: SampleSettings, storage: StorageSettings) -> VideoInfo:
    """Header of a video: its ranges are planned one after the other."""
    with reading(url):
        return probe(_videos(storage).file(url), settings)


class _LastVideo:
    """The video that was opened last. The ranges of a video follow each other, so that it is opened once."""

    def __init__(self, storage: StorageSettings) -> None:
        self._storage, self._url, self._stack = storage, "", ExitStack()
        self._file: BinaryIO | None = None

    def file(self, url: str) -> BinaryIO:
        """The open file of a video, at its start."""
        if self._file is None or self._url != url:
            self._stack.close()
            self._file = None
            self._file, self._url = self._stack.enter_context(open_file(url, self._storage)), url
        self._file.seek(0)
        return self._file


@functools.lru_cache(maxsize=1)
def _videos(storage: StorageSettings) -> _LastVideo:
    return _LastVideo(storage)
