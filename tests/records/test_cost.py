"""The estimate of a run's cost: a model that holds on videos that it was not fitted on."""

from typing import Any

import pytest

from benchmarks.estimate import FIGURES, Errors, Measured, fit, read_measured
from videolavit.media import VideoInfo
from videolavit.records.cost import COST, estimated_cost, with_pipeline


def video(width: int = 320, height: int = 240, rate: float = 30.0, codec: str = "h264", **more: Any) -> VideoInfo:
    """Header of ten seconds."""
    return VideoInfo("mp4", codec, width, height, 10.0, rate, **{"num_frames": 0} | more)


def test_cost_grows_with_what_is_decoded() -> None:
    small = estimated_cost(video(), 10, 6)
    assert estimated_cost(video(1920, 1080), 10, 6) > 10 * small
    assert estimated_cost(video(), 20, 6) > 1.8 * small
    assert estimated_cost(video(bit_rate=20_000_000), 10, 6) > small
    assert estimated_cost(video(rate=60.0), 10, 6) > small
    assert estimated_cost(video(pixel_format="yuv420p10le"), 10, 6) > small


def test_a_clock_is_no_frame_rate() -> None:
    """Some containers name that of their clock; the number of frames says more."""
    assert estimated_cost(video(rate=90_000.0, num_frames=300), 10, 6) == estimated_cost(video(), 10, 6)
    assert estimated_cost(video(rate=90_000.0), 10, 6) == estimated_cost(video(rate=240.0), 10, 6)


def test_other_codecs_have_a_cost_too() -> None:
    assert estimated_cost(video(codec="theora"), 10, 6) == estimated_cost(video(codec="mpeg4"), 10, 6)


def test_the_pipeline_costs_something_for_every_sample() -> None:
    assert with_pipeline(10.0, 100) - with_pipeline(10.0, 0) == pytest.approx(100 * (with_pipeline(0.0, 1)))
    assert with_pipeline(10.0, 0) > 10.0


@pytest.mark.parametrize("synthetic", [False, True])
def test_the_model_holds_on_sources_that_it_was_not_fitted_on(synthetic: bool) -> None:
    known = [one for one in read_measured(FIGURES) if one.is_synthetic == synthetic]
    held_out = [one for one in known if one.is_held_out]
    assert len(held_out) >= 20
    assert len({one.codec for one in held_out}) >= (1 if synthetic else 4)
    assert not {one.source for one in held_out} & {one.source for one in known if not one.is_held_out}
    errors = Errors.of(held_out, COST)
    assert abs(errors.total) <= 0.2
    assert errors.near >= 0.8


def test_a_fit_finds_what_figures_were_made_with() -> None:
    """From figures of a model whose decoding is twice as dear as that of the model that ships."""
    made_with = {name: value * (2 if name.endswith("pixels") else 1) for name, value in COST.items()}
    seen = [one for one in read_measured(FIGURES) if not one.is_held_out]
    figures = [_as_if(one, made_with) for one in seen]
    errors = Errors.of(figures, fit(figures))
    assert abs(errors.total) < 0.03
    assert abs(errors.files).max() < 0.1


def _as_if(one: Measured, cost: dict[str, float]) -> Measured:
    ratio = 1 + Errors.of([one], cost).total
    return Measured(**{**vars(one), "core_seconds": one.core_seconds * ratio})
