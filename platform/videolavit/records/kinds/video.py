"""Video files, members of tars, and tables of addresses of videos."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

import pyarrow as pa

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.media.errors import SourceUnreadable

from ..cost import estimated_cost
from ..files import IMAGE_SUFFIXES, TEXT_SUFFIXES, suffix_of
from ..identity import identifying_settings, sample_id
from ..inputs import InputSettings
from ..plan import clip_bytes, expected_clips, segment_ranges
from ..rows import PlanRow, Source, VideoSample, plan_rows_to
from ..samples import SampleSettings, decompose_segment
from ..storage import StorageSettings, open_source
from ..tables import Table
from .base import UNREAD_COST, Kind, PlanSettings
from .manifest import list_addresses

VIDEO_COLUMN = "video"


class VideoKind(Kind):
    """Videos, wherever they lie: planned from their headers, a sample a segment, and decomposed."""

    modality = "video"
    is_decomposed = True

    def media_column(self, settings: InputSettings) -> str:
        return VIDEO_COLUMN

    # ---- parts in which they differ -------------------------------------------------------------------------------

    @abstractmethod
    def opened(self, source: Source, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        """The open video of a source. Raises MediaError."""

    def header(self, source: Source, settings: SampleSettings, storage: StorageSettings) -> VideoInfo:
        """Header of the video. Raises MediaError."""
        with self.opened(source, storage) as file:
            return probe(file, settings)

    def segments(
        self, source: Source, info: VideoInfo | None, settings: SampleSettings
    ) -> Sequence[tuple[float, float | None]]:
        """Starts and ends of the samples in the video, in seconds: by default the whole of it.

        Args:
            info: Header of the video; None where it could not be read, which gives one segment.
        """
        return [(0.0, None)] if info is None else segment_ranges(info, settings)

    def sample_id(self, source: Source, start: float, end: float | None, settings: SampleSettings) -> str:
        """Name of a sample."""
        return sample_id(source.source, start, identifying_settings(settings))

    # ---- planning and work ----------------------------------------------------------------------------------------

    def plan(
        self, source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
    ) -> pa.Table:
        try:
            info = self.header(source, settings.sample, storage)
        except SourceUnreadable:
            raise
        except MediaError:  # decomposing it gives the reject its reason
            return super().plan(source, settings, storage, extra)
        return plan_rows_to(self._rows(source, info, settings.sample), extra)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        (row,) = self._rows(source, None, settings.sample)
        return row

    def _rows(self, source: Source, info: VideoInfo | None, settings: SampleSettings) -> list[PlanRow]:
        rows = []
        for start, end in self.segments(source, info, settings):
            declared = info.seconds if info and end is None else end
            length = None if declared is None else max(declared - start, 0.0)
            row = PlanRow(
                **vars(source) | {"start_seconds": start, "end_seconds": end},
                sample_id=self.sample_id(source, start, end, settings),
                planned_seconds=length if info else None,
                num_clips=expected_clips(length, settings),
                cost=estimated_cost(info, length, settings.fps) if info and length else UNREAD_COST,
                size_bytes=clip_bytes(info, length) if info and length else 0.0,
            )
            rows.append(row)
        return rows

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        with self.opened(row, storage) as file:
            return decompose_segment(file, row, settings)


class VideoFile(VideoKind):
    """A video in a file, or in a range of bytes of one."""

    name = "video"
    joins_captions = True

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        is_other = suffix_of(name) in IMAGE_SUFFIXES | TEXT_SUFFIXES
        return settings.must_be("video") or (settings.may_be("video") and not is_other)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return settings.must_be("video") or (settings.may_be("video") and VIDEO_COLUMN in table.names)

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        return list_addresses(self.name, VIDEO_COLUMN, table, rows, first, settings, reserved)

    def opened(self, source: Source, storage: StorageSettings) -> AbstractContextManager[BinaryIO]:
        return open_source(source.url, storage, source.offset or 0, source.length)
