"""Video files, members of tars, and tables of addresses of videos."""

from collections.abc import Sequence

import pyarrow as pa

from videolavit.media import MediaError, VideoInfo, probe
from videolavit.media.errors import SourceUnreadable

from ..files import IMAGE_SUFFIXES, TEXT_SUFFIXES, suffix_of
from ..identity import identifying_settings, sample_id
from ..inputs import InputSettings
from ..plan import clip_bytes, estimated_cost, expected_clips, segment_ranges
from ..rows import PlanRow, Source, VideoSample, plan_rows_to
from ..samples import SampleSettings, decompose_segment
from ..storage import StorageSettings, open_source
from ..tables import Table
from .base import UNREAD_COST, Kind, PlanSettings
from .manifest import list_addresses

VIDEO_COLUMN = "video"


class VideoFile(Kind):
    """A video in a file, or in a range of bytes of one."""

    name = "video"
    modality = "video"
    is_decomposed = True
    joins_captions = True

    def takes_file(self, name: str, settings: InputSettings) -> bool:
        is_other = suffix_of(name) in IMAGE_SUFFIXES | TEXT_SUFFIXES
        return settings.must_be("video") or (settings.may_be("video") and not is_other)

    def takes_table(self, table: Table, settings: InputSettings) -> bool:
        return settings.must_be("video") or (settings.may_be("video") and VIDEO_COLUMN in table.names)

    def media_column(self, settings: InputSettings) -> str:
        return VIDEO_COLUMN

    def list_rows(
        self, table: Table, rows: pa.Table, first: int, group: int, settings: InputSettings, reserved: frozenset[str]
    ) -> pa.Table:
        return list_addresses(self.name, VIDEO_COLUMN, table, rows, first, settings, reserved)

    def plan(
        self, source: Source, settings: PlanSettings, storage: StorageSettings, extra: Sequence[pa.Field]
    ) -> pa.Table:
        try:
            with open_source(source.url, storage, source.offset or 0, source.length) as file:
                info = probe(file, settings.sample)
        except SourceUnreadable:
            raise
        except MediaError:  # decomposing it gives the reject its reason
            return plan_rows_to([self.plan_unread(source, settings)], extra)
        return plan_rows_to(segments(source, info, settings.sample), extra)

    def plan_unread(self, source: Source, settings: PlanSettings) -> PlanRow:
        return segment(source, None, settings.sample, 0.0, None, None)

    def clips(self, row: PlanRow, settings: SampleSettings, storage: StorageSettings) -> VideoSample:
        with open_source(row.url, storage, row.offset or 0, row.length) as file:
            return decompose_segment(file, row, settings)


def segments(source: Source, info: VideoInfo, settings: SampleSettings) -> list[PlanRow]:
    """Rows of the plan for a whole video, one a segment."""
    return [
        segment(source, info, settings, start, end, None if info.seconds is None else (end or info.seconds) - start)
        for start, end in segment_ranges(info, settings)
    ]


def segment(
    source: Source,
    info: VideoInfo | None,
    settings: SampleSettings,
    start: float,
    end: float | None,
    seconds: float | None,
) -> PlanRow:
    """Row of the plan for a segment.

    Args:
        info: Header of the video; None where it could not be read.
        seconds: Length of the segment; None where it is not known.
    """
    return PlanRow(
        **vars(source) | {"start_seconds": start, "end_seconds": end},
        sample_id=sample_id(source.source, start, identifying_settings(settings)),
        planned_seconds=seconds,
        num_clips=expected_clips(seconds, settings),
        cost=estimated_cost(info, seconds, settings.fps) if info and seconds else UNREAD_COST,
        size_bytes=clip_bytes(info, seconds) if info and seconds else 0.0,
    )
