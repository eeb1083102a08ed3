"""Manifests in which a row is a piece of a video."""

import json
import shutil
from datetime import datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import moving_texture
from videolavit.media import decompose, write_mp4
from videolavit.media.errors import StreamEnded
from videolavit.records.files import InputError
from videolavit.records.kinds import KINDS, read_clips, shard_by
from videolavit.records.kinds.ranges import BadRange, seconds_of
from videolavit.records.plan import assign_clip_shards
from videolavit.records.rows import plan_rows_from, sources_from
from videolavit.records.samples import stored_clips

from .reading import SETTINGS, STORAGE, count_opens, kinds_of, listed, opens, plan_table, planned


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ranges") / "long.mp4"
    write_mp4(moving_texture(12 * 24, 48, 64, 1), file, 12)
    return file


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (12, 12.0),
        (12.25, 12.25),
        ("12.25", 12.25),
        ("01:05", 65.0),
        ("0:01:05.250", 65.25),
        ("00:01:05,250", 65.25),
        ("1:2:3:4", None),
        ("abc", None),
        ("", None),
        ("-1", None),
        (-1, None),
        (None, None),
        (True, None),
        (float("nan"), None),
        ("1e3", None),
        (float("inf"), None),
        (Decimal("1.5"), 1.5),
        (10**400, None),
        ("9" * 400, None),
        (1.7e9, None),
    ],
)
def test_times(written: object, seconds: float | None) -> None:
    assert seconds_of(written) == seconds


def _write(folder: Path, suffix: str, rows: list[dict[str, object]]) -> Path:
    file = folder / f"pieces.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        file.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_row_is_a_sample(video: Path, suffix: str) -> None:
    rows = [
        {"video": video.name, "start": "0:00:01.500", "end": "0:00:04", "text": "one", "score": 1},
        {"video": video.name, "start": "0:00:06", "end": "0:00:12.250", "text": "two", "score": 2},
        {"video": video.name, "start": "0:00:06", "end": "0:00:10", "text": "a shorter two", "score": 3},
    ]
    file = _write(video.parent, suffix, rows)
    assert kinds_of(file) == {"range"}
    made = planned(file)
    assert [(row.start_seconds, row.end_seconds) for row in made] == [(1.5, 4.0), (6.0, 12.25), (6.0, 10.0)]
    assert [(row.text, row.extra["score"]) for row in made] == [("one", 1), ("two", 2), ("a shorter two", 3)]
    assert len({row.sample_id for row in made}) == 3  # the last two differ in their ends only
    assert [row.key for row in made] == [row.extra["range_id"] for row in made]
    assert {row.source for row in made} == {str(video)}
    for row in made:
        sample = read_clips(row, SETTINGS.sample, STORAGE)
        expected = list(decompose(video, start_seconds=row.start_seconds or 0.0, end_seconds=row.end_seconds))
        assert sample.num_clips == len(expected)
        for (_, motion), clip in zip(stored_clips(sample.clips), expected, strict=True):
            assert (motion == clip.motion[: clip.num_frames]).all()
    file.unlink()


def test_lists_of_ranges_with_lists_of_captions(video: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": video.name, "start": [0, 5.5], "end": [3, 9], "caption": ["a", "b"], "id": "x"},
        {"video": video.name, "start": [10], "end": [14], "caption": ["c"], "id": "y"},
    ]
    for suffix in ("jsonl", "parquet"):
        file = _write(video.parent, suffix, rows)
        made = planned(file)
        assert [(row.start_seconds, row.end_seconds, row.text) for row in made] == [
            (0.0, 3.0, "a"),
            (5.5, 9.0, "b"),
            (10.0, 14.0, "c"),
        ]
        assert [row.extra["id"] for row in made] == ["x", "x", "y"]
        file.unlink()
    lists = video.parent / "lists.csv"
    lists.write_text(
        f"video,start,end,caption\n{video.name},\"['0:00:01', '0:00:06']\",\"[4, 9]\",\"['it''s a', 'b']\"\n"
    )
    assert [(row.start_seconds, row.end_seconds) for row in planned(lists)] == [(1.0, 4.0), (6.0, 9.0)]
    lists.unlink()


def test_a_long_range_becomes_samples_that_share_its_caption_and_id(video: Path) -> None:
    file = _write(video.parent, "jsonl", [{"video": video.name, "start": 1, "end": 23, "text": "long"}])
    made = planned(file)
    assert [(row.start_seconds, row.end_seconds) for row in made] == [(1.0, 9.0), (9.0, 17.0), (17.0, 23.0)]
    assert {row.text for row in made} == {"long"}
    assert len({row.extra["range_id"] for row in made}) == 1
    assert len({row.sample_id for row in made}) == 3
    file.unlink()


def test_the_end_of_the_video_ends_a_range(video: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": video.name, "start": 20, "end": 500},
        {"video": video.name, "start": 100, "end": 104},
    ]
    file = _write(video.parent, "jsonl", rows)
    beyond, behind = planned(file)
    assert read_clips(beyond, SETTINGS.sample, STORAGE).end_seconds == 24.0
    with pytest.raises(StreamEnded, match="no frame at 100 s"):
        read_clips(behind, SETTINGS.sample, STORAGE)
    file.unlink()


def test_rows_that_are_no_range_are_rejects_of_their_own(video: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": video.name, "start": "3", "end": "1"},
        {"video": video.name, "start": "soon", "end": "later"},
        {"video": video.name, "start": "1", "end": "3"},
    ]
    file = _write(video.parent, "jsonl", rows)
    made = planned(file)
    assert [row.source for row in made] == [f"{file}#row0.0", f"{file}#row1.0", str(video)]
    for row in made[:2]:
        with pytest.raises(BadRange, match="no range"):
            read_clips(row, SETTINGS.sample, STORAGE)
    assert read_clips(made[2], SETTINGS.sample, STORAGE).num_clips == 1
    file.unlink()


def test_a_video_is_opened_once_for_its_ranges(video: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    shutil.copy(video, copy)
    rows: list[dict[str, object]] = [
        {"video": str(path), "start": start, "end": start + 2.5} for start in range(0, 20, 4) for path in (copy, video)
    ]
    file = _write(tmp_path, "jsonl", rows)
    shards = assign_clip_shards(plan_table(file), 0, shard_by)
    urls = shards["url"].to_pylist()
    assert urls == sorted(urls)  # ranges of one video follow each other
    count_opens(copy)
    for row in plan_rows_from(shards):
        read_clips(row, SETTINGS.sample, STORAGE)
    assert opens(copy) == 1


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (Decimal("1.5"), Decimal("4.25")),
        (timedelta(seconds=1.5), timedelta(seconds=4.25)),
        (time(0, 0, 1, 500_000), time(0, 0, 4, 250_000)),
    ],
)
def test_times_in_the_types_of_databases(video: Path, tmp_path: Path, start: object, end: object) -> None:
    file = _write(tmp_path, "parquet", [{"video": str(video), "start": start, "end": end}])
    assert [(row.start_seconds, row.end_seconds) for row in planned(file)] == [(1.5, 4.25)]


def test_dates_are_refused_as_a_whole(video: Path, tmp_path: Path) -> None:
    start, end = datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 1)
    file = _write(tmp_path, "parquet", [{"video": str(video), "start": start, "end": end}])
    with pytest.raises(InputError, match=r"column `start` of .* holds timestamp"):
        planned(file)


def test_an_end_far_behind_the_video_costs_nothing(video: Path, tmp_path: Path) -> None:
    file = _write(tmp_path, "jsonl", [{"video": str(video), "start": 0, "end": 999_999}])
    assert [(row.start_seconds, row.end_seconds) for row in planned(file)] == [(0, 8), (8, 16), (16, 24)]
    (batch,) = listed(file)
    (source,) = sources_from(batch)
    assert KINDS["range"].plan_unread(source, SETTINGS).num_clips < 2**31


def test_a_csv_with_a_byte_order_mark(video: Path, tmp_path: Path) -> None:
    file = tmp_path / "excel.csv"
    file.write_text(f"\ufeffvideo,start,end\n{video},00:00:01,00:00:05\n")
    assert [(row.start_seconds, row.end_seconds) for row in planned(file)] == [(1.0, 5.0)]


def test_captions_that_do_not_fit_their_ranges(video: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": str(video), "start": 1, "end": 3, "text": None},
        {"video": str(video), "start": 1, "end": 4, "text": ["a", "b"]},
    ]
    file = _write(tmp_path, "jsonl", rows)
    assert [(row.source, row.text) for row in planned(file)] == [(str(video), None), (f"{file}#row1.0", None)]
