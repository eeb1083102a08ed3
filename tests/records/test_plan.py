"""Cutting, costing and grouping: pure functions."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from videolavit.media import VideoInfo
from videolavit.records.kinds import shard_by
from videolavit.records.plan import (
    MAX_CLIP_SHARD_BYTES,
    assign_clip_shards,
    clip_bytes,
    segment_ranges,
)
from videolavit.records.rows import PlanRow, plan_rows_from, plan_rows_to
from videolavit.records.samples import SampleSettings


def _video(seconds: float | None, width: int = 320, height: int = 240) -> VideoInfo:
    return VideoInfo("mp4", "h264", width, height, seconds, 30.0, 300)


def _ranges(seconds: float | None, segment: float) -> list[tuple[float, float | None]]:
    """Ranges of clips of 4 s."""
    return segment_ranges(_video(seconds), SampleSettings(fps=6, segment_seconds=segment))


@settings(deadline=None)
@given(seconds=st.floats(0.1, 1e4), segment=st.floats(4, 600))
def test_segments_tile_the_video(seconds: float, segment: float) -> None:
    ranges = _ranges(seconds, segment)
    assert ranges[0][0] == 0
    assert ranges[-1][1] is None
    for (start, end), (following, _) in pairwise(ranges):
        assert end == following
        assert abs(following - start - segment) < 1e-6
    assert len(ranges) == 1 or seconds - ranges[-1][0] > 0
    assert seconds - ranges[-1][0] <= segment + 4.0 + 1e-6


def test_segments_of_known_videos() -> None:
    assert _ranges(None, 120) == [(0, None)]
    assert _ranges(123, 120) == [(0, None)]  # 3 s more are no clip of their own
    assert _ranges(250, 120) == [(0, 120), (120, 240), (240, None)]
    assert _ranges(243, 120) == [(0, 120), (120, None)]


def _rows(costs: list[float], info: VideoInfo) -> list[PlanRow]:
    """Samples that take so long, as large as the video."""
    return [
        PlanRow(
            source=f"{index}.mp4",
            url=f"{index}.mp4",
            kind="video",
            sample_id=f"{index:032x}",
            cost=cost,
            planned_seconds=info.seconds,
            size_bytes=clip_bytes(info, info.seconds or 0.0),
        )
        for index, cost in enumerate(costs)
    ]


def _assigned(rows: list[PlanRow], generation: int) -> list[PlanRow]:
    return plan_rows_from(assign_clip_shards(plan_rows_to(rows), generation, shard_by))


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=60), st.randoms())
def test_shards_do_not_depend_on_the_order_of_the_input(costs: list[float], random) -> None:  # noqa: ANN001
    rows = _rows(costs, _video(10.0))
    shuffled = list(rows)
    random.shuffle(shuffled)
    first = {row.sample_id: row.shard for row in _assigned(rows, 3)}
    second = {row.sample_id: row.shard for row in _assigned(shuffled, 3)}
    assert first == second
    assert len(first) == len(costs)
    assert all(shard is not None and shard.startswith("00003-") for shard in first.values())


def test_the_longest_work_comes_first_and_shards_stay_small() -> None:
    ordered = _assigned(_rows([0.1] * 50 + [40.0], _video(10.0)), 0)
    assert ordered[0].cost == 40.0
    shards = [row.shard for row in _assigned(_rows([0.001] * 20, _video(120.0, 1920, 1080)), 0)]
    bytes_a_sample = 30 * 1920 * 1080 * 0.6
    assert max(shards.count(shard) for shard in shards) <= max(1, MAX_CLIP_SHARD_BYTES // bytes_a_sample)
