"""Videos that are shorter than their headers declare: once a segment shows it, those behind it are not tried."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.common import Rejected, SampleWork, WorkerSettings
from tests.conftest import moving_texture
from tests.media.videos import make_declaring
from tests.records.kinds.reading import SETTINGS, STORAGE, count_opens, opens, planned
from videolavit.media.errors import StreamEnded
from videolavit.records.kinds import read_clips
from videolavit.records.rows import PlanRow
from videolavit.records.source_files import isolated


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video of 20 s that declares ten minutes."""
    file = tmp_path_factory.mktemp("short") / "short.mkv"
    make_declaring(file, moving_texture(6 * 20, 48, 64, 0), 600)
    return file


Worked = tuple[dict[float, int], set[tuple[str, str, str, int]]]


def _worked(rows: Sequence[PlanRow]) -> Worked:
    """Clips by the start of the segment, and the rejects: of one worker, in the order of the rows."""
    function = isolated(read_clips, STORAGE)
    work = SampleWork(function, WorkerSettings(), "decompose")
    clips: dict[float, int] = {}
    rejects: set[tuple[str, str, str, int]] = set()
    for row in rows:
        try:
            clips[row.start_seconds or 0.0] = work(row, SETTINGS.sample, STORAGE).num_clips
        except Rejected as failure:
            one = failure.reject
            rejects.add((one.sample_id, one.error_type, one.message, one.attempts))
    function.close()
    return clips, rejects


def test_segments_behind_the_end_are_rejected_without_decoding(short: Path) -> None:
    rows = planned(short)
    assert len(rows) == 75
    count_opens(short)
    clips, rejects = _worked(rows)
    assert clips == {0.0: 2, 8.0: 2, 16.0: 1}
    assert opens(short) == len(clips) + 1
    assert len(rejects) == len(rows) - len(clips)


def test_the_order_of_segments_changes_nothing(short: Path) -> None:
    rows = planned(short)[:8]
    inwards = [rows[-1], rows[4], *rows]
    forwards, backwards, mixed = _worked(rows), _worked(rows[::-1]), _worked(inwards)
    assert forwards == backwards == mixed
    with pytest.raises(StreamEnded) as decoded:
        read_clips(rows[5], SETTINGS.sample, STORAGE)
    assert (rows[5].sample_id, "StreamEnded", str(decoded.value), 1) in forwards[1]
