"""Floating-point operations of training a language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Flops:
    """Model FLOPs of a forward and backward pass: six operations per token and weight of a matrix multiplication, the
    head included and the embedding look-up not, and causal attention.

    Args:
        weights: Number of weights in matrix multiplications.
        attention: Number of layers times the width of all heads.
    """

    weights: int
    attention: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Flops:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        config = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = config.num_attention_heads * head
        return cls(sum(module.weight.numel() for module in linear), config.num_hidden_layers * width)

    def __call__(self, lengths: Iterable[int]) -> float:
        """Counts the operations for documents of the given lengths, in tokens.

        Scores and values take 2 x 2 operations per pair and channel forward, of which a causal mask needs half, and
        twice as many backward.
        """
        lengths = list(lengths)
        pairs = sum(length * length for length in lengths) / 2
        return 6.0 * self.weights * sum(lengths) + 12.0 * self.attention * pairs
