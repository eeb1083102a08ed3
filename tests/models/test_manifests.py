"""At the published size, every network has exactly the tensors of the published checkpoints: names and shapes.

Nothing is allocated. `lowres_decoder.json` is of LaVIT's decoder for another U-Net, which this project does not build.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from videolavit.models.config import ModelConfig
from videolavit.models.language_model import UnderstandingModel
from videolavit.models.parts import PARTS
from videolavit.models.presets import load_preset
from videolavit.models.published import published_state

NOT_BUILT = {"lowres_decoder"}


def part(name: str) -> Callable[[ModelConfig], Any]:
    return lambda config: PARTS[name](config)


def understanding(config: ModelConfig) -> UnderstandingModel:
    parts = (PARTS[f"understanding/{name}"](config) for name in ("language_model", "visual_tokenizer"))
    return UnderstandingModel(*parts, PARTS["understanding/motion_tokenizer"](config), config.vocabulary)


PUBLISHED: dict[str, Callable[[ModelConfig], Any]] = {
    "motion_tokenizer": part("motion_tokenizer"),
    "motion_condition_encoder": part("video_detokenizer/motion_encoder"),
    "dynamic_visual_tokenizer": part("understanding/visual_tokenizer"),
    "highres_decoder": part("keyframe_detokenizer/conditions"),
    "video_unet": part("video_detokenizer/unet"),
    "language_model_sft": understanding,
}
"""By the name of the manifest, which is the component's."""

INFERRED = {
    "INFERRED_image_unet_sdxl": ("image_unet", part("keyframe_detokenizer/unet")),
    "INFERRED_image_vae_sdxl": ("image_vae", part("keyframe_detokenizer/vae")),
    "INFERRED_video_vae_svd": ("video_vae", part("video_detokenizer/vae")),
}
"""Stock shapes that nobody has compared with the published files."""


def shapes(component: str, build: Callable[[ModelConfig], Any]) -> dict[str, list[int]]:
    with torch.device("meta"):
        module = build(load_preset("video-lavit-7b"))
    return {name: list(tensor.shape) for name, tensor in published_state(component, module).items()}


@pytest.fixture(scope="module")
def manifests(pytestconfig: pytest.Config) -> Path:
    folder: Path = pytestconfig.getoption("--manifests")
    if not folder.is_dir():
        pytest.skip("no manifests here; name their folder with --manifests DIR")
    return folder


def read(manifests: Path, name: str) -> dict[str, list[int]]:
    return {key: list(shape) for key, shape in json.loads((manifests / f"{name}.json").read_text()).items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensors_are_the_published_ones(manifests: Path, name: str) -> None:
    ours, published = shapes(name, PUBLISHED[name]), read(manifests, name)
    assert not published.keys() ^ ours.keys()
    assert ours == published


@pytest.mark.parametrize("name", INFERRED)
def test_tensors_against_inferred_shapes(manifests: Path, name: str) -> None:
    """A difference is reported, not forbidden: published files decide, and bring their own configuration."""
    component, build = INFERRED[name]
    ours, inferred = shapes(component, build), read(manifests, name)
    differing = sorted(ours.keys() ^ inferred.keys())
    differing += sorted(key for key in ours.keys() & inferred.keys() if ours[key] != inferred[key])
    if differing:
        warnings.warn(f"{name}: {len(differing)} tensors differ, among them {differing[:5]}", stacklevel=1)
    assert len(ours.keys() & inferred.keys()) > len(inferred) / 2, "another kind of network altogether"


def test_every_manifest_is_looked_at(manifests: Path) -> None:
    assert {path.stem for path in manifests.glob("*.json")} <= PUBLISHED.keys() | INFERRED.keys() | NOT_BUILT
