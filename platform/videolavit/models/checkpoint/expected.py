"""Requirements of each part: its config, and the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from pydantic import TypeAdapter
from torch import Size, nn
from transformers import LlamaConfig, LlamaForCausalLM

from .. import published
from ..config import ModelConfig
from ..network import WEIGHTS, Network, read_json
from ..part_files import STRANGERS_CHOICES
from ..parts import DIFFUSERS, PARTS, SCHEDULERS
from ..quiet import quiet_libraries
from ..video_detokenizer import MotionConditionEncoder, MotionUNet
from ..visual_tokenizer import VisualTokenizer
from .layout import CONFIG_FOLDERS, DIFFUSERS_STEM, config_name
from .tensors import StoredTensor, WeightsError

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Current names of attention layers by those that `diffusers` saved before 0.17 and still reads."""


@dataclass(frozen=True)
class ExpectedPart:
    """Requirements of a part.

    Args:
        name: Name of the part, a key of `PARTS`.
        config: Content of its config file.
        shapes: Shapes of its tensors by name; None for a part without weights.
        renamed: Names in `shapes` by the older names that are read as well.
        weights: Name of its file of weights.
        remark: Line for the user; may be empty.
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, Size] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    weights: str = WEIGHTS
    remark: str = ""


def weights_name(part: str) -> str:
    """Returns the name of a part's file of weights in a model folder."""
    return f"{DIFFUSERS_STEM}.safetensors" if part in DIFFUSERS else WEIGHTS


def expected_part(name: str, folder: Path, config: ModelConfig, found: Mapping[str, StoredTensor]) -> ExpectedPart:
    """Works out the requirements of a part.

    Args:
        name: Name of the part.
        folder: Published folder. A config in it takes precedence over `config`.
        config: Shapes of the networks that are published without a config.
        found: Tensors of the part in the published folder; they decide about optional tensors.

    Raises:
        WeightsError: a config cannot be used.
    """
    file = folder / CONFIG_FOLDERS[name] / config_name(name) if name in CONFIG_FOLDERS else None
    values = read_json(file, WeightsError) if file is not None and file.is_file() else {}
    if name.endswith("scheduler"):
        return scheduler_part(name, values)
    try:
        with torch.device("meta"), quiet_libraries():
            if name in DIFFUSERS:
                return _diffusers_part(name, values)
            if name.endswith("language_model"):
                return _language_model(name, values)
            network = _network(name, config, values, found)
    except Exception as error:  # libraries raise any exception for a bad value
        raise WeightsError(f"cannot use {file or 'the preset'} for {name}: {error}") from None
    return ExpectedPart(name, TypeAdapter(network.Config).dump_python(network.config, mode="json"), _shapes(network))


def _network(name: str, config: ModelConfig, values: dict[str, Any], found: Mapping[str, StoredTensor]) -> Network[Any]:
    """Builds one of this project's networks."""
    if name == "video_detokenizer/unet" and values:
        unet: MotionUNet = published.empty_module("video_unet", values)
        return unet
    network: Network[Any] = PARTS[name](config)
    if name == "visual_tokenizer" and "vit_proj.weight" in found:
        return VisualTokenizer(replace(network.config, features_dim=found["vit_proj.weight"].shape[0]))
    if isinstance(network, MotionConditionEncoder) and "temp_pos" in found:
        return MotionConditionEncoder(replace(network.config, temporal_frames=found["temp_pos"].shape[1]))
    return network


def _diffusers_part(name: str, values: dict[str, Any]) -> ExpectedPart:
    expected = DIFFUSERS[name]
    stored = values.get("_class_name", expected)
    if stored != expected:
        raise ValueError(f"it is of a {stored}, expected {expected}")
    network = getattr(diffusers, expected).from_config(values)
    return ExpectedPart(name, values, _shapes(network), renamed_attention(network), weights_name(name))


def renamed_attention(network: nn.Module) -> dict[str, str]:
    """Returns the names of tensors of attention layers by the older names that are read as well."""
    return {
        f"{path}.{old}.{end}": f"{path}.{new}.{end}"
        for path, module in network.named_modules()
        if getattr(module, "_from_deprecated_attn_block", False)
        for old, new in OLD_ATTENTION.items()
        for end in ("weight", "bias")
    }


def _language_model(name: str, values: dict[str, Any]) -> ExpectedPart:
    """Takes any language model as the Llama that it is: the published class name and code are not needed."""
    left_out = ("model_type", "architectures", *STRANGERS_CHOICES)
    shape = {key: value for key, value in values.items() if key not in left_out}
    network = LlamaForCausalLM(LlamaConfig.from_dict(shape))
    config = shape | {"model_type": "llama", "architectures": [LlamaForCausalLM.__name__]}
    return ExpectedPart(name, config, _shapes(network))


def scheduler_part(name: str, values: dict[str, Any]) -> ExpectedPart:
    """Works out a scheduler: that of keyframes is DDIM unless it is EulerAncestral (docs/model.md, section 4.2).

    Raises:
        WeightsError: there is no such scheduler here.
    """
    kind = values.get("_class_name")
    if name.startswith("keyframe_detokenizer") and kind not in ("DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        remark = f"{name}: the config is of a {kind}; DDIM runs it, as in the published code"
        return ExpectedPart(name, values | {"_class_name": "DDIMScheduler"}, remark=remark)
    if kind not in SCHEDULERS:
        raise WeightsError(f"{name} is a {kind}; known are {', '.join(SCHEDULERS)}")
    return ExpectedPart(name, values)


def _shapes(network: nn.Module) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
