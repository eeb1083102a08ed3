"""Networks on disk: exact, checked, and never pickled."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import small_networks
from videolavit.models.config import ModelConfig
from videolavit.models.motion_tokenizer import MotionTokenizer, MotionTokenizerConfig
from videolavit.models.network import CONFIG, WEIGHTS, ModelError, Network, parse_config
from videolavit.models.presets import load_preset
from videolavit.models.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

NETWORKS: list[Callable[[], Network[Any]]] = [
    small_networks.visual_tokenizer,
    small_networks.motion_tokenizer,
    small_networks.condition_decoder,
    small_networks.motion_encoder,
    small_networks.video_unet,
]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small_networks.motion_tokenizer().save(tmp_path / "network")
    return tmp_path / "network"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", NETWORKS)
def test_saved_and_loaded_is_the_same_network(
    make: Callable[[], Network[Any]], dtype: torch.dtype, tmp_path: Path
) -> None:
    network = make().to(dtype)
    network.save(tmp_path)
    loaded = type(network).load(tmp_path)
    assert loaded.config == network.config
    assert not loaded.training
    before, after = network.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        assert after[name].equal(tensor), name


def test_unknown_key_in_a_saved_config(saved: Path) -> None:
    values = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(values | {"dimension": 3}))
    with pytest.raises(ModelError, match="dimension: Unexpected keyword"):
        MotionTokenizer.load(saved)


def test_checkpoint_of_another_shape(saved: Path) -> None:
    values = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(values | {"num_codes": 13}))
    with pytest.raises(ModelError, match=r"quantize.embedding.weight has shape \[12, 4\], expected \[13, 4\]"):
        MotionTokenizer.load(saved)


def test_checkpoint_of_another_network_names_what_differs(saved: Path) -> None:
    state = load_file(saved / WEIGHTS)
    state["encoder.extra"] = state.pop("encoder.norm.weight")
    save_file(state, saved / WEIGHTS)
    with pytest.raises(ModelError, match=r"(?s)missing encoder.norm.weight.*left over encoder.extra"):
        MotionTokenizer.load(saved)


def test_a_long_list_of_differences_is_cut(saved: Path) -> None:
    save_file({"encoder.extra": torch.zeros(1)}, saved / WEIGHTS)
    with pytest.raises(ModelError, match=r"and \d+ more$"):
        MotionTokenizer.load(saved)


@pytest.mark.parametrize(("name", "content", "message"), [
    (CONFIG, None, "config.json is missing"),
    (CONFIG, b"{", "is not JSON"),
    (WEIGHTS, None, "model.safetensors is missing"),
    (WEIGHTS, b"not a header", "cannot read"),
])  # fmt: skip
def test_damaged_folder(saved: Path, name: str, content: bytes | None, message: str) -> None:
    (saved / name).unlink()
    if content is not None:
        (saved / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        MotionTokenizer.load(saved)


def test_pickled_weights_are_not_read(saved: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "unpickled"))
    (saved / WEIGHTS).write_bytes(bomb)
    (saved / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(ModelError, match="cannot read"):
        MotionTokenizer.load(saved)
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(bomb)
    assert (tmp_path / "unpickled").is_dir()


def test_unknown_preset() -> None:
    with pytest.raises(ModelError, match="unknown preset 'large'; there are tiny, mini, small, video-lavit-7b"):
        load_preset("large")


@pytest.mark.parametrize(("values", "message"), [
    ({"visual_tokeniser": {}}, "visual_tokeniser: Unexpected keyword"),
    ({"keyframe_detokenizer": {"unet": {"heads": [1]}}}, r"keyframe_detokenizer.unet.heads: Unexpected keyword"),
    ({"motion_tokenizer": {"dim": "wide"}}, "motion_tokenizer.dim: Input should be a valid integer"),
    ({"motion_tokenizer": {"num_frames": 16}}, "motion_tokenizer.num_frames and the clip length must be equal"),
    ({"visual_tokenizer": {"num_codes": 8}}, "conditions.num_codes and visual_tokenizer.num_codes must be equal"),
    ({"language_model": {"hidden_size": 64}}, "features_dim and language_model.hidden_size must be equal"),
])  # fmt: skip
def test_model_config_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_config(ModelConfig, values, "a file")


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="num_frames must be a multiple of 8"):
        MotionTokenizerConfig(num_frames=20)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        VisualTokenizerConfig(image_size=225)
    with pytest.raises(ValueError, match="width must be even"):
        VisualTokenizerConfig(width=33)
    with pytest.raises(ValueError, match="16 channels cannot be split into 3 heads"):
        MotionTokenizer(MotionTokenizerConfig(dim=16, num_heads=3))
    with pytest.raises(ValueError, match="16 channels cannot be split into 3 heads"):
        VisualTokenizer(VisualTokenizerConfig(width=16, vit_heads=2, merger_heads=3))
