"""Ranges of videos: manifests in which a row is a piece of a video, or a list of pieces.

video,start,end,text
a.mp4,0:00:12.5,0:00:19.2,a dog runs
b.mp4,"[0, 7.5]","[3, 11]","['a door opens', 'a cat sits']"
"""

import ast
import functools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.media.errors import SourceUnreadable, TooFewFrames

from ..files import InputError
from ..identity import identifying_settings, range_id, sample_id
from ..inputs import InputSettings
from ..plan import clip_bytes, clip_seconds, estimated_cost, expected_clips, segment_seconds
from ..rows import RANGE, PlanRow, Source, VideoSample, listing, plan_rows_to
from ..samples import SampleSettings, decompose_segment
from ..schema import RANGE_ID
from ..storage import StorageSettings, open_file, reading
from ..tables import RANGE_COLUMNS, Table, caption_column, further_columns
from .base import UNREAD_COST, Kind, PlanSettings
from .manifest import row_addresses, row_name

RANGE_VIDEO, RANGE_START, RANGE_END = RANGE_COLUMNS

MAX_SECONDS = 1e6
"""Times above are no times of a video: they are wrong by their unit."""

_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class BadRange(MediaError):
    """A row's start and end are no range of a video."""


class VideoRange(Kind):
    """A range of a video."""

    name = RANGE
    modality = "video"
    is_decomposed = True
    shard_by = ("url",)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return (
            settings.may_be("video") and set(RANGE_COLUMNS) <= set(table.names) and not table.holds_bytes(RANGE_VIDEO)
        )

    def media_column(self, settings: InputSettings) -> str:
        return RANGE_VIDEO

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        caption = caption_column(table, settings.text_column)
        further = further_columns(table, rows, (*RANGE_COLUMNS, caption), reserved | {RANGE_ID})
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
        return listing({**columns, "url": urls, "kind": self.name}, {**extra, RANGE_ID: pa.array(ids, pa.string())})

    def plan(
        self, source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
    ) -> pa.Table:
        try:
            info = _header(source.url, settings.sample, storage)
        except SourceUnreadable:
            raise
        except MediaError:  # decomposing it gives the reject its reason
            return plan_rows_to([self.plan_unread(source, settings)], extra)
        return plan_rows_to(list(_segments(source, info, settings.sample)), extra)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        start, end = source.start_seconds or 0.0, source.end_seconds or 0.0
        name = sample_id(source.source, start, identifying_settings(settings.sample), end)
        clips = expected_clips(max(end - start, 0.0), settings.sample)
        return PlanRow(**vars(source), sample_id=name, num_clips=clips, cost=UNREAD_COST)

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        if row.start_seconds is None or row.end_seconds is None or row.end_seconds <= row.start_seconds:
            raise BadRange("its start and end are no range; write both in seconds or as hh:mm:ss.mmm, end above start")
        try:
            with reading(row.url):
                return decompose_segment(_videos(storage).file(row.url), row, settings)
        except TooFewFrames as error:
            raise TooFewFrames(f"from {row.start_seconds:g} to {row.end_seconds:g} s: {error}") from None


def _segments(source: Source, info: VideoInfo, settings: SampleSettings) -> Iterator[PlanRow]:
    """Rows of the plan for a range: one, or several where it is longer than a segment.

    Segments that would begin behind the end of the video are left out.
    """
    start, end = source.start_seconds or 0.0, source.end_seconds or 0.0
    length, clip = segment_seconds(info, settings), clip_seconds(settings)
    count = max(math.ceil((end - start - clip) / length), 1)
    for index in range(count):
        first, last = start + index * length, end if index == count - 1 else start + (index + 1) * length
        if first > start and info.seconds is not None and first >= info.seconds:
            return
        seconds = max(last - first, 0.0)
        yield PlanRow(
            **vars(replace(source, start_seconds=first, end_seconds=last)),
            sample_id=sample_id(source.source, first, identifying_settings(settings), last),
            planned_seconds=seconds,
            num_clips=expected_clips(seconds, settings),
            cost=estimated_cost(info, seconds, settings.fps) or UNREAD_COST,
            size_bytes=clip_bytes(info, seconds),
        )


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
