"""Lanes of the data order: ranks plan and open their own, and nothing is dropped or doubled at the seams."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videolavit.training.data import LANES, PERIOD, Mixture, ShuffledSource, joined, lanes_of, positions_in
from videolavit.training.packed import Document, PackedStream, PackingSettings

LENGTH = 512


class Numbered:
    """Documents whose ids say where they come from, of the lengths that a function gives them."""

    def __init__(self, shortest: int = 20, longest: int = LENGTH, most: int = 3) -> None:
        self._bounds, self._most = (shortest, longest + 1), most
        self.asked: set[int] = set()

    def lengths(self, position: int) -> list[int]:
        self.asked.add(position)
        rng = np.random.default_rng(position)
        return [int(length) for length in rng.integers(*self._bounds, int(rng.integers(1, self._most + 1)))]

    def source(self, position: int) -> str:
        return "numbered"

    def identify(self, position: int) -> str:
        return str(position)

    def load(self, position: int, index: int) -> Document:
        return Document(np.array([position, index]), "numbered")


def packed(documents: Numbered | None = None, chunk: int = 160) -> PackedStream:
    return PackedStream(documents or Numbered(), PackingSettings(LENGTH, chunk=chunk, seed=5))


def rows_of(stream: PackedStream, count: int, rank: int = 0, world: int = 1) -> list[list[tuple[int, ...]]]:
    return [[tuple(one.ids.tolist()) for one in item.load()] for item in stream.take(count, rank, world)]


@given(st.integers(0, LANES - 1), st.integers(0, 3 * PERIOD))
def test_a_lane_has_one_of_every_sixteen_positions(lane: int, number: int) -> None:
    (position,) = positions_in(lane, range(number, number + 1))
    assert lanes_of(np.array([position])) == lane
    assert position // LANES == number


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.97, 0.03], [14, 1], [16, 1], [63, 1]])
def test_every_lane_has_its_share_of_every_source(weights: list[float]) -> None:
    """Also where the pattern of the mixture repeats like the lanes do."""

    class Shards:
        name, sizes = "shards", [100] * 100

    mixture = Mixture([Shards(), Shards()], weights, seed=1)
    share, samples = weights[1] / sum(weights), 16 * PERIOD // LANES
    for lane in range(LANES):
        second = sum(mixture.source_at(position) for position in positions_in(lane, range(samples)))
        assert second == pytest.approx(share * samples, abs=4 * (share * samples) ** 0.5 + 2)


def test_the_lanes_of_a_window_share_few_shards() -> None:
    sizes = [50] * 48
    order = ShuffledSource(sizes, [1], 16)
    for start in range(0, len(order), 800):
        places = range(start, start + 800)
        shards: dict[int, set[int]] = {lane: set() for lane in range(LANES)}
        for position, lane in zip(places, lanes_of(np.array(places)), strict=True):
            shards[int(lane)].add(order.at(position)[1])
        assert all(len(found) == 1 for found in shards.values())
        assert len(set().union(*shards.values())) == 16


def test_rows_of_a_shard_meet_in_other_lanes_in_another_epoch() -> None:
    order = ShuffledSource([320], [1], 16)
    lanes = [lanes_of(np.arange(epoch * 320, (epoch + 1) * 320)) for epoch in range(2)]
    places = [{order.at(epoch * 320 + index)[2]: lane for index, lane in enumerate(lanes[epoch])} for epoch in range(2)]
    assert sum(places[0][row] == places[1][row] for row in range(320)) < 60  # 20 by chance


def test_no_document_is_dropped_or_doubled_between_chunks() -> None:
    documents, stream = Numbered(), packed()
    taken = Counter(one for row in rows_of(stream, 1500) for one in row)
    assert max(taken.values()) == 1
    for lane in range(LANES):
        number, _, carried = stream.state()[f"lane {lane}"]
        assert number > 5
        behind = {
            (position, index)
            for position in positions_in(lane, range(number * 160 // LANES))
            for index in range(len(documents.lengths(position)))
        }
        assert behind - taken.keys() <= {tuple(one) for one in carried}


def test_documents_that_fit_nowhere_wait_for_one_chunk() -> None:
    """All of them take more than half a row, so that every chunk has an emptiest row of one document."""
    documents = Numbered(shortest=300, longest=300, most=1)
    stream = packed(documents)
    for number, row in enumerate(rows_of(stream, 3200)):
        ((position, _),) = row
        assert position // 160 >= number // 160 - 1


@pytest.mark.parametrize(("longest", "padding"), [(80, 0.03), (300, 0.02), (LENGTH, 0.07)])
def test_small_chunks_leave_little_padding(longest: int, padding: float) -> None:
    documents = Numbered(longest=longest)
    rows = rows_of(packed(documents, chunk=1024), 800)
    used = sum(documents.lengths(position)[index] for row in rows for position, index in row)
    assert 1 - padding < used / (800 * LENGTH) <= 1


@pytest.mark.parametrize("worlds", [(1, 2, 1), (4, 16), (2, 3, 8), (32, 1)])
def test_ranks_take_the_rows_of_one_stream_whatever_their_number(worlds: tuple[int, ...]) -> None:
    """Each part is read by another number of ranks, which begin where the ranks before them ended."""
    count = 192
    whole, state = packed(), {}
    for world in worlds:
        expected = rows_of(whole, count)
        states, found = [], {}
        for rank in range(world):
            stream = packed()
            if state:
                stream.seek(state)
            found[rank] = rows_of(stream, count, rank, world)
            states.append(stream.state())
        assert [row for rows in zip(*found.values(), strict=True) for row in rows] == expected
        state = joined(states)
        assert state == whole.state()


@pytest.mark.parametrize("world", [2, 4, 16])
def test_a_rank_plans_its_own_lanes(world: int) -> None:
    for rank in range(world):
        documents = Numbered()
        rows_of(packed(documents), 320, rank, world)
        lanes = set(lanes_of(np.array(sorted(documents.asked))).tolist())
        assert lanes == set(range(rank, LANES, world))
