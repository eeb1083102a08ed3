"""What a model folder needs of each part: its config, and the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from pydantic import TypeAdapter
from torch import Size, nn
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.config.model import ModelConfig

from .. import published
from ..folder import DIFFUSERS, PARTS, SCHEDULERS, quiet_libraries
from ..network import WEIGHTS, Network
from ..video_detokenizer import MotionConditionEncoder, MotionUNet
from ..visual_tokenizer import VisualTokenizer
from .layout import CONFIG_FOLDERS, DIFFUSERS_STEM, config_name
from .tensors import Stored, WeightsError, read_json

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in VAEs that were saved before `diffusers` 0.17, which still reads them."""


@dataclass(frozen=True)
class Part:
    """What is expected of a part.

    Args:
        name: A key of `PARTS`.
        config: Goes into its folder.
        shapes: Of its tensors; None for a part without any.
        renamed: Older names that are read as well -> the ones in `shapes`.
        weights: Name of its file of weights.
        remark: What the user should know.
    """

    name: str
    config: dict[str, Any]
    shapes: dict[str, Size] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    weights: str = WEIGHTS
    remark: str = ""


def weights_name(part: str) -> str:
    """Name of a part's file of weights in a model folder."""
    return f"{DIFFUSERS_STEM}.safetensors" if part in DIFFUSERS else WEIGHTS


def expected_part(name: str, folder: Path, config: ModelConfig, found: Mapping[str, Stored]) -> Part:
    """What a part of a published folder must hold.

    Args:
        folder: The published one; its configs go first.
        config: Shapes of the networks without a config of their own.
        found: The part's tensors. They decide what is optional.

    Raises:
        WeightsError: a config cannot be used.
    """
    file = folder / CONFIG_FOLDERS[name] / config_name(name) if name in CONFIG_FOLDERS else None
    values = read_json(file) if file is not None and file.is_file() else {}
    if name.endswith("scheduler"):
        return _scheduler(name, values)
    try:
        with torch.device("meta"), quiet_libraries():
            if name in DIFFUSERS:
                return _diffusers_part(name, values)
            if name.endswith("language_model"):
                return _language_model(name, values)
            network = _network(name, config, values, found)
    except Exception as error:  # what libraries raise for a bad value has no end
        raise WeightsError(f"cannot use {file or 'the preset'} for {name}: {error}") from None
    return Part(name, TypeAdapter(network.Config).dump_python(network.config, mode="json"), _shapes(network))


def _network(name: str, config: ModelConfig, values: dict[str, Any], found: Mapping[str, Stored]) -> Network[Any]:
    """One of our own networks."""
    if name == "video_detokenizer/unet" and values:
        unet: MotionUNet = published.make("video_unet", values)
        return unet
    network: Network[Any] = PARTS[name](config)
    if name == "visual_tokenizer" and "vit_proj.weight" in found:
        return VisualTokenizer(replace(network.config, features_dim=found["vit_proj.weight"].shape[0]))
    if isinstance(network, MotionConditionEncoder) and "temp_pos" in found:
        return MotionConditionEncoder(replace(network.config, temporal_frames=found["temp_pos"].shape[1]))
    return network


def _diffusers_part(name: str, values: dict[str, Any]) -> Part:
    kind = DIFFUSERS[name]
    written = values.get("_class_name", kind)
    if written != kind:
        raise ValueError(f"it is of a {written}, expected {kind}")
    network = getattr(diffusers, kind).from_config(values)
    renamed = {
        f"{path}.{old}.{end}": f"{path}.{new}.{end}"
        for path, module in network.named_modules()
        if getattr(module, "_from_deprecated_attn_block", False)
        for old, new in OLD_ATTENTION.items()
        for end in ("weight", "bias")
    }
    return Part(name, values, _shapes(network), renamed, weights_name(name))


def _language_model(name: str, values: dict[str, Any]) -> Part:
    """A Llama, whatever its authors called the class that loaded it; no code of theirs is needed or kept."""
    plain = {key: value for key, value in values.items() if key not in ("model_type", "architectures", "auto_map")}
    network = LlamaForCausalLM(LlamaConfig.from_dict(plain))
    return Part(name, plain | {"model_type": "llama", "architectures": [LlamaForCausalLM.__name__]}, _shapes(network))


def _scheduler(name: str, values: dict[str, Any]) -> Part:
    """The keyframes' scheduler is DDIM unless the config says EulerAncestral (docs/model.md, section 4.2)."""
    kind = values.get("_class_name")
    if name.startswith("keyframe_detokenizer") and kind not in ("DDIMScheduler", "EulerAncestralDiscreteScheduler"):
        remark = f"{name}: the config is of a {kind}; DDIM runs it, as in the published code"
        return Part(name, values | {"_class_name": "DDIMScheduler"}, remark=remark)
    if kind not in SCHEDULERS:
        raise WeightsError(f"{name} is a {kind}; known are {', '.join(SCHEDULERS)}")
    return Part(name, values)


def _shapes(network: nn.Module) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
