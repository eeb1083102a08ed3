"""Cutting, costing and grouping: pure functions."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videolavit.media import VideoInfo
from videolavit.records.plan import MAX_SHARD_BYTES, assign_shards, estimated_cost, segment_ranges


@settings(deadline=None)
@given(seconds=st.floats(0.1, 1e4), segment=st.floats(4, 600))
def test_segments_tile_the_video(seconds: float, segment: float) -> None:
    ranges = segment_ranges(seconds, segment, 4.0)
    assert ranges[0][0] == 0
    assert ranges[-1][1] is None
    for (start, end), (following, _) in pairwise(ranges):
        assert end == following
        assert abs(following - start - segment) < 1e-6
    assert len(ranges) == 1 or seconds - ranges[-1][0] > 0
    assert seconds - ranges[-1][0] <= segment + 4.0 + 1e-6


def test_segments_of_known_videos() -> None:
    assert segment_ranges(None, 120, 4) == [(0, None)]
    assert segment_ranges(123, 120, 4) == [(0, None)]  # 3 s more are no clip of their own
    assert segment_ranges(250, 120, 4) == [(0, 120), (120, 240), (240, None)]
    assert segment_ranges(243, 120, 4) == [(0, 120), (120, None)]


def test_cost_grows_with_what_is_decoded() -> None:
    small = VideoInfo("mp4", "h264", 320, 240, 10.0, 30.0, 300)
    large = VideoInfo("mp4", "h264", 1920, 1080, 10.0, 30.0, 300)
    assert estimated_cost(large, 10, 6) == pytest.approx(27 * estimated_cost(small, 10, 6))
    assert estimated_cost(small, 20, 6) == pytest.approx(2 * estimated_cost(small, 10, 6))


def _rows(costs: list[float]) -> list[dict]:
    return [
        {"sample_id": f"{index:032x}", "cost": cost, "planned_seconds": 10.0, "pixels": 320 * 240}
        for index, cost in enumerate(costs)
    ]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=60), st.randoms())
def test_shards_do_not_depend_on_the_order_of_the_input(costs: list[float], random) -> None:  # noqa: ANN001
    rows = _rows(costs)
    shuffled = _rows(costs)
    random.shuffle(shuffled)
    first = {row["sample_id"]: row["shard"] for row in assign_shards(rows, 3)}
    second = {row["sample_id"]: row["shard"] for row in assign_shards(shuffled, 3)}
    assert first == second
    assert len(first) == len(costs)
    assert all(shard.startswith("00003-") for shard in first.values())


def test_the_longest_work_comes_first_and_shards_stay_small() -> None:
    ordered = assign_shards(_rows([0.1] * 50 + [40.0]), 0)
    assert ordered[0]["cost"] == 40.0
    heavy = [row | {"pixels": 1920 * 1080, "planned_seconds": 120.0} for row in _rows([0.001] * 20)]
    shards = [row["shard"] for row in assign_shards(heavy, 0)]
    bytes_a_sample = 30 * 1920 * 1080 * 0.6
    assert max(shards.count(shard) for shard in shards) <= max(1, MAX_SHARD_BYTES // bytes_a_sample)
