"""Videos inside Parquet."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.headers import planning_blocks
from tests.conftest import moving_texture
from videolavit.media import decompose, write_mp4
from videolavit.media.errors import SourceMissing, UnknownFormat
from videolavit.records.kinds import open_named_video, plan_source, read_clips, shard_by
from videolavit.records.kinds.stored_video import ForwardReader
from videolavit.records.plan import assign_clip_shards
from videolavit.records.rows import sources_from
from videolavit.records.samples import stored_clips
from videolavit.records.table_reader import SourceChanged

from .reading import SETTINGS, STORAGE, count_opens, kinds_of, listed, opens, plan_table, planned


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(4):
        write_mp4(moving_texture(12 * (4 + 4 * index), 48, 64, index), folder / f"{index}.mp4", 12)
    return sorted(folder.iterdir())


def _as_bytes(videos: list[Path]) -> pa.Array:
    return pa.array([video.read_bytes() for video in videos], pa.large_binary())


def _as_structs(videos: list[Path]) -> pa.Array:
    """Videos in the form that `datasets` stores its features `Video` and `Image` in."""
    return pa.array([{"bytes": video.read_bytes(), "path": video.name} for video in videos])


@pytest.mark.parametrize("column", [_as_bytes, _as_structs])
def test_rows_become_samples(videos: list[Path], tmp_path: Path, column: object) -> None:
    table = pa.table({"video": column(videos), "caption": list("abcd"), "rating": [1, 2, 3, 4]})  # type: ignore[operator]
    file = tmp_path / "videos.parquet"
    pq.write_table(table, file, row_group_size=3)
    assert kinds_of(file) == {"stored_video"}
    rows = planned(file)
    assert [(row.row, row.start_seconds) for row in rows] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 8)]
    assert [row.row_group for row in rows] == [0, 0, 0, 1, 1]
    assert [row.text for row in rows] == ["a", "b", "c", "d", "d"]
    assert [row.extra["rating"] for row in rows] == [1, 2, 3, 4, 4]
    assert len({row.sample_id for row in rows}) == 5
    for row in rows:
        sample = read_clips(row, SETTINGS.sample, STORAGE)
        source = videos[row.row or 0]
        expected = list(decompose(source, start_seconds=row.start_seconds or 0.0, end_seconds=row.end_seconds))
        assert sample.num_clips == len(expected) > 0
        for (_, motion), clip in zip(stored_clips(sample.clips), expected, strict=True):
            assert (motion == clip.motion[: clip.num_frames]).all()


def test_a_row_may_name_its_file_and_one_without_either_is_rejected(videos: list[Path]) -> None:
    values = [{"bytes": None, "path": videos[0].name}, {"bytes": None, "path": None}, {"bytes": b"none", "path": "x"}]
    file = videos[0].parent / "named.parquet"
    pq.write_table(pa.table({"video": pa.array(values)}), file)
    named, missing, damaged = planned(file)
    assert read_clips(named, SETTINGS.sample, STORAGE).num_clips == 1
    with pytest.raises(SourceMissing, match=r"row 1 of .* has no video"):
        read_clips(missing, SETTINGS.sample, STORAGE)
    with pytest.raises(UnknownFormat):
        read_clips(damaged, SETTINGS.sample, STORAGE)
    file.unlink()


def test_a_row_group_is_read_once_and_shares_a_shard(tmp_path: Path) -> None:
    """The costs of the rows differ by more than a shard allows, which would scatter them."""
    file = tmp_path / "many.parquet"
    values = [np.random.default_rng(index).bytes(300_000) for index in range(40)]
    pq.write_table(pa.table({"video": values}), file, row_group_size=10)
    plan = plan_table(file)
    costs = pa.array([float(1 + index % 7) for index in range(plan.num_rows)])
    shuffled = plan.set_column(plan.schema.get_field_index("cost"), "cost", costs).take(
        pa.array(np.random.default_rng(0).permutation(plan.num_rows))
    )
    assigned = assign_clip_shards(shuffled, 0, shard_by).to_pylist()
    shards: dict[str, list[int]] = {}
    for row in assigned:
        shards.setdefault(row["shard"], []).append(row["row"])
    assert sorted(shards.values()) == [list(range(start, start + 10)) for start in range(0, 40, 10)]
    count_opens(file)
    reader = ForwardReader(STORAGE)
    for rows in shards.values():
        for row in rows:
            assert reader.value(str(file), row, "video") == values[row]
            assert reader.value(str(file), row, "video") == values[row]  # a second segment of the same video
    assert opens(file) == 4


def test_memory_is_that_of_a_page_not_of_a_row_group(tmp_path: Path) -> None:
    file = tmp_path / "large.parquet"
    values = pa.array([np.random.default_rng(index).bytes(4_000_000) for index in range(50)])
    pq.write_table(pa.table({"video": values}), file, row_group_size=50, use_dictionary=False, write_batch_size=1)
    del values
    pool = pa.default_memory_pool()
    before, reader, most = pool.bytes_allocated(), ForwardReader(STORAGE), 0
    for row in range(50):
        assert len(reader.value(str(file), row, "video")) == 4_000_000
        most = max(most, pool.bytes_allocated() - before)
    assert most < 40_000_000  # the row group has 200 MB


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "shrunk.parquet"
    pq.write_table(pa.table({"video": [b"a", b"b"]}), file)
    reader = ForwardReader(STORAGE)
    assert reader.value(str(file), 1, "video") == b"b"
    with pytest.raises(SourceChanged, match="no row 2"):
        reader.value(str(file), 2, "video")


def test_the_video_behind_a_sample_is_found_by_its_name(videos: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "videos.parquet"
    pq.write_table(pa.table({"video": _as_bytes(videos)}), file)
    with open_named_video(f"{file}#row2", STORAGE) as opened:
        assert opened.read() == videos[2].read_bytes()
    assert isinstance(opened, io.BytesIO)


def test_a_row_group_is_planned_by_one_actor(tmp_path: Path) -> None:
    file = tmp_path / "many.parquet"
    pq.write_table(pa.table({"video": [b"x"] * 100}), file, row_group_size=40)
    sources = pa.concat_tables(list(listed(file)))
    blocks = planning_blocks(sources)
    assert [block["row_group"].unique().to_pylist() for block in blocks] == [[0], [1], [2]]
    count_opens(file)
    for block in blocks:
        for source in sources_from(block):
            plan_source(source, SETTINGS, STORAGE, [])
    assert opens(file) == 3
