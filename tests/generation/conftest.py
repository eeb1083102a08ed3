"""Small model with all parts, and pictures and videos for it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import moving_texture
from videolavit.generation.prompts import Picture
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import ModelFacts, finish_model_folder
from videolavit.models.motion_tokenizer import MotionTokenizerConfig
from videolavit.models.part_files import save_part
from videolavit.models.parts import PARTS
from videolavit.models.presets import load_preset
from videolavit.models.vae import VAEConfig

FAST = GenerateSettings(keyframe_steps=2, video_steps=1, max_visual=24, video_width=32, video_height=32)
"""Settings that take a second. The video size differs from the model's own."""

EIGHTH = VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)

SHARPER = {"language_model": 2, "understanding/language_model": 2, "keyframe_detokenizer/conditions": 3}
"""Factors of the matrices: with the initial weights, the output of a part hardly depends on its input."""


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs networks with one thread: small ones gain nothing from more, and are slow with more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained model like the preset `tiny`, with smaller pictures and a narrower motion tokenizer.

    It has 135 motion codes, and latents with an eighth of a picture's sides, as published.
    """
    folder = tmp_path_factory.mktemp("model") / "model"
    preset = load_preset("tiny")
    config = replace(
        preset,
        motion_tokenizer=MotionTokenizerConfig(dim=8, num_heads=1, mlp_ratio=1.0, num_codes=128, code_dim=4),
        keyframe_detokenizer=replace(preset.keyframe_detokenizer, vae=EIGHTH),
        video_detokenizer=replace(preset.video_detokenizer, vae=EIGHTH),
    )
    sizes = replace(preset.sizes, keyframe_width=48, keyframe_height=32, video_width=64, video_height=32)
    for index, (part, build) in enumerate(PARTS.items()):
        torch.manual_seed(index)
        network = build(config)
        _sharpen(network, SHARPER.get(part, 1))
        save_part(network, folder / part)
        if part.endswith("language_model"):
            ModelFolder("tiny").text_tokenizer().save_pretrained(folder / part)
    finish_model_folder(folder, ModelFacts(sizes=sizes, trained=[], vocabulary=config.vocabulary))
    return folder


def _sharpen(network: Any, factor: float) -> None:
    for weight in network.parameters() if factor != 1 else ():
        if weight.ndim == 2:
            weight.data.mul_(factor)


@pytest.fixture(scope="session")
def model(model_path: Path) -> ModelFolder:
    return ModelFolder(model_path)


@pytest.fixture(scope="session")
def runtime(model: ModelFolder) -> Runtime:
    return Runtime(model)


@pytest.fixture(scope="session")
def blind(model: ModelFolder) -> Runtime:
    """Runtime with visual tokenizers that keep no patch of any picture."""
    runtime = Runtime(model)
    for tokenizer in (runtime.loaded("visual_tokenizer"), runtime.loaded("understanding").visual_tokenizer):
        tokenizer.token_predictor.out_conv[4].bias.copy_(torch.tensor([-100.0, 100.0]))
    return runtime


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """Two pictures of different sizes."""
    return [next(moving_texture(1, height, width, seed)) for seed, (height, width) in enumerate([(48, 64), (80, 40)])]


@pytest.fixture(scope="session")
def picture_file(pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(pictures[0]).save(path)
    return path


@pytest.fixture(scope="session")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty frames at 6 fps, 64 x 48: a whole clip and a short one."""
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    write_mp4(moving_texture(30, 48, 64, 5), path, 6)
    return path


def apart(ours: Picture, theirs: Picture) -> int:
    """Largest difference of a pixel between two pictures or videos, in levels."""
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(np.int16) - theirs).max())
