"""The data order: every sample once an epoch, mixtures that keep their shares, and no dependence on history."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.toys import InMemorySource
from videolavit.training.data import PERIOD, DataError, Mixture, SampleStream, ShuffledSource


class Shards:
    """Samples that know where they are."""

    def __init__(self, name: str, sizes: list[int]) -> None:
        self.name, self.sizes = name, sizes

    def load(self, shard: int, row: int) -> tuple[str, int, int]:
        return self.name, shard, row


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), window=st.integers(1, 5))
def test_every_epoch_holds_every_sample_once(sizes: list[int], window: int) -> None:
    order = ShuffledSource(sizes, [1], window)
    every = {(shard, row) for shard, size in enumerate(sizes) for row in range(size)}
    for epoch in range(3):
        found = [order.at(epoch * len(order) + index) for index in range(len(order))]
        assert {one[0] for one in found} == {epoch}
        assert Counter(one[1:] for one in found) == Counter(every)


def test_epochs_and_seeds_differ_and_reading_stays_local() -> None:
    sizes = [50] * 40
    order = ShuffledSource(sizes, [1], 4)
    epochs = [[order.at(epoch * 2000 + index)[1:] for index in range(2000)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [ShuffledSource(sizes, [2], 4).at(index)[1:] for index in range(2000)]
    for start in range(0, 2000, 200):
        shards = [shard for shard, _ in epochs[0][start : start + 200]]
        assert len(set(shards)) == 4
        assert len(set(shards[:20])) > 1  # mixed, not one after the other


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [90, 9, 1], [1, 1, 1]])
def test_a_mixture_keeps_its_shares_over_any_length(weights: list[float]) -> None:
    sources = [Shards("long", [1000] * 5), Shards("short", [3]), Shards("middle", [40, 60])]
    mixture = Mixture(sources, weights, seed=0)
    shares = [weight / sum(weights) for weight in weights]
    came = [0, 0, 0]
    for position in range(3 * PERIOD):
        came[mixture.locate(position).source] += 1
        for source, share in enumerate(shares):
            assert abs(came[source] - share * (position + 1)) < 2.5 + (position + 1) / PERIOD
    short = [mixture.locate(position) for position in range(3 * PERIOD)]
    rows = Counter(place.row for place in short if place.source == 1)
    assert max(rows.values()) - min(rows.values()) <= 1  # short sources repeat, evenly


def test_without_weights_sources_count_by_their_samples() -> None:
    mixture = Mixture([Shards("a", [300]), Shards("b", [100])])
    assert Counter(mixture.locate(position).source for position in range(PERIOD)) == {0: 768, 1: 256}


def test_a_position_does_not_depend_on_what_came_before() -> None:
    sources = [Shards("a", [7, 9, 3]), Shards("b", [5])]
    whole = [item.load() for item in SampleStream(Mixture(sources, seed=4)).take(500)]
    stream = SampleStream(Mixture(sources, seed=4))
    stream.take(123)
    other = SampleStream(Mixture(sources, seed=4))
    other.seek(stream.state())
    items = other.take(377)
    assert [item.load() for item in items] == whole[123:]
    assert [item.position for item in items] == list(range(123, 500))


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(DataError, match="no source"):
        Mixture([])
    with pytest.raises(DataError, match="empty has no samples"):
        Mixture([InMemorySource("empty", [])])
    with pytest.raises(DataError, match="2 weights for 1"):
        Mixture([Shards("a", [1])], [1, 2])
    with pytest.raises(DataError, match="above 0"):
        Mixture([Shards("a", [1]), Shards("b", [1])], [1, 0])
