"""Bounds of the settings of a training."""

import dataclasses
import typing
from typing import Any

import pytest

from pipelines.train import ClusterSettings
from videolavit.models.codebook import CodebookSettings
from videolavit.models.language_model.lora import LoRASettings
from videolavit.training.components import COMPONENTS, settings_type
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainInputs, TrainSettings
from videolavit.vocabulary.sequences import OrderSettings

SETTINGS = [TrainSettings, OptimizerSettings, ParallelSettings, ClusterSettings, *map(settings_type, COMPONENTS)]
SETTINGS += [LoRASettings, CodebookSettings, OrderSettings]


def numbers(kind: Any) -> list[str]:
    """Names of fields of one number."""
    hints = typing.get_type_hints(kind)
    return [
        field.name
        for field in dataclasses.fields(kind)
        if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}
        and typing.get_origin(hints[field.name]) not in (tuple, list, dict)
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in SETTINGS for name in numbers(kind)],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_every_number_has_a_bound(kind: Any, name: str) -> None:
    for wrong in (-(10**9), float("nan"), float("inf")):
        with pytest.raises(ValueError):
            kind(**{name: wrong})


@pytest.mark.parametrize("betas", [(0.9, 1.5), (1.0, 0.9), (-0.1, 0.9)])
def test_betas_are_below_1(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="betas must be at least 0 and below 1"):
        OptimizerSettings(betas=betas)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_of_the_learning_rate_are_above_0(scale: float) -> None:
    with pytest.raises(ValueError):
        OptimizerSettings(lr_scales={"*": scale})


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_are_above_0(weights: list[float]) -> None:
    with pytest.raises(ValueError):
        TrainInputs(train=["a", "b"], weights=weights)
