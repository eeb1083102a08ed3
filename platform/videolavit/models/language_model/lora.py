"""Low-rank adapters (LoRA) by PEFT: merged into the weights that are saved, and kept beside them in PEFT's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import save_file
from torch import Tensor, nn

from ..network import STRICT, ModelError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WRAPPER = "base_model.model."
"""Beginning of the names of tensors in PEFT's files."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoRASettings:
    """Low-rank adapters that are trained instead of the language model's weights.

    Args:
        rank: Rank of the adapters; 0 trains the weights themselves, as published.
        alpha: Scale: the product of an adapter's matrices is multiplied by `alpha / rank`. LLaVA uses twice the rank.
        targets: Names of the projections that get an adapter; by default all of a block.
    """

    rank: int = 0
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0:
            raise ValueError("rank must be at least 0 and alpha above 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 0.0


def add_lora(model: PreTrainedModel, settings: LoRASettings, seed: int) -> None:
    """Freezes a model and adds adapters to it, in place.

    Raises:
        ModelError: PEFT is not installed, or the model has no projection of such a name.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise ModelError("adapters need PEFT: install `videolavit[lora]`, or set lora.rank to 0") from None
    config = _peft_config(settings)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ModelError(f"no adapter fits: {error}") from None


def _peft_config(settings: LoRASettings) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=sorted(settings.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns a network's state with its adapters merged into the weights, under the names without adapters."""
    result = {}
    for name, value in state.items():
        if name.endswith(f"{_BASE}weight"):
            projection = name.removesuffix(f"{_BASE}weight")
            change = state[projection + _UP].float() @ state[projection + _DOWN].float()
            result[f"{projection}.weight"] = (value.float() + scale * change).to(value.dtype)
        elif not name.endswith((_DOWN, _UP)):
            result[name.replace(_BASE, ".")] = value
    return result


def trained_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are trained: those of the adapters, and of weights beside them."""
    return frozenset(name for name, value in model.named_parameters() if value.requires_grad)


def save_adapter(state: dict[str, Tensor], trained: frozenset[str], settings: LoRASettings, folder: Path) -> None:
    """Writes adapters as PEFT does, with the other weights that were trained beside them.

    `PeftModel.from_pretrained(model, folder)` adds them to the model that the training started from.

    Args:
        state: State of the network with its adapters, on the CPU.
        trained: Names of the trained parameters.
        settings: Settings of the adapters.
        folder: Empty folder.

    Raises:
        OSError: a file cannot be written.
    """
    tensors = {
        f"{_WRAPPER}{name}".replace(".default.weight", ".weight"): value.contiguous().clone()
        for name, value in state.items()
        if name in trained
    }
    config = _peft_config(settings)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
