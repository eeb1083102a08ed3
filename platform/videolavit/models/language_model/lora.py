"""Low-rank adapters (LoRA) by PEFT. Saving merges them into the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..network import STRICT, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


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
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModelError("adapters need PEFT: install `videolavit[lora]`, or set lora.rank to 0") from None
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets))
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ModelError(f"no adapter fits: {error}") from None


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns a network's state with its adapters merged into the weights, under the names without adapters."""
    result = {}
    for name, value in state.items():
        if name.endswith(_BASE):
            projection = name.removesuffix(_BASE)
            change = state[projection + _UP].float() @ state[projection + _DOWN].float()
            result[f"{projection}.weight"] = (value.float() + scale * change).to(value.dtype)
        elif not name.endswith((_DOWN, _UP)):
            result[name] = value
    return result
