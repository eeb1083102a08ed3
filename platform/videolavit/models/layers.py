"""Layers of the tokenizers and condition networks. Attribute names are the published names of the weights."""

from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection.

    Args:
        dim: Channels.
        num_heads: Heads of `dim / num_heads` channels each.
        key_bias: True if keys have a bias. Without, as in BEiT, the weights hold `q_bias` and `v_bias`.
    """

    def __init__(self, dim: int, num_heads: int, key_bias: bool = True) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        self.q_bias: nn.Parameter | None = None if key_bias else _zeros(dim)
        self.v_bias: nn.Parameter | None = None if key_bias else _zeros(dim)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects [batch, tokens, dim] to query, key and value, each [batch, heads, tokens, channels]."""
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        query, key, value = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        return split_heads(query, self.num_heads), split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Attends over tokens, [batch, tokens, dim] in and out."""
        return self.proj(merge_heads(F.scaled_dot_product_attention(*self.heads(x))))


class CrossAttention(nn.Module):
    """Multi-head attention from queries to a memory, with separate biased projections."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects `x` to queries and `memory` to keys and values, each [batch, heads, tokens, channels]."""
        return (
            split_heads(self.query(x), self.num_heads),
            split_heads(self.key(memory), self.num_heads),
            split_heads(self.value(memory), self.num_heads),
        )

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attends from queries to a memory.

        Args:
            x: Queries, [batch, queries, dim].
            memory: Memory, [batch, tokens, dim].
            bias: Added to the scores; broadcast to [batch, heads, queries, tokens].
        """
        attended = F.scaled_dot_product_attention(*self.heads(x, memory), attn_mask=bias)
        return self.proj(merge_heads(attended))


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SpaceTimeBlock(nn.Module):
    """Pre-norm block: attention within each frame, attention over time at each place, and an MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.spatial_attention = Attention(dim, num_heads, key_bias=False)
        self.temporal_attention = Attention(dim, num_heads, key_bias=False)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms [batch, time, places, dim]."""
        x = x + self.spatial_attention(self.norm0(x).flatten(0, 1)).view_as(x)
        series = self.norm1(x).transpose(1, 2)
        attended = self.temporal_attention(series.flatten(0, 1))
        x = x + attended.view(series.shape).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


def projection(inner: int, outer: int, channels: int | None = None) -> nn.Sequential:
    """Builds linear, tanh, linear: the published layers before and after a codebook."""
    return nn.Sequential(nn.Linear(inner, channels or inner), nn.Tanh(), nn.Linear(channels or inner, outer))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshapes [batch, tokens, dim] to [batch, heads, tokens, dim / heads]."""
    heads: Tensor = x.unflatten(-1, (num_heads, -1))
    return heads.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshapes [batch, heads, tokens, channels] to [batch, tokens, heads * channels]."""
    return x.transpose(1, 2).flatten(2)


REFERENCE_WIDTH = 512
"""Channels of the narrowest published network, for which the published deviation of 0.02 is right."""


def init_weights(module: nn.Module) -> None:
    """Initializes a projection as published: truncated normal weights of deviation 0.02, and zero biases.

    In narrower networks than the published ones, 0.02 would shrink activations from layer to layer. There the deviation
    is larger, so that the output of a layer is as large as in the published networks.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        channels = max(module.weight.shape[:2])
        nn.init.trunc_normal_(module.weight, std=0.02 * max(1.0, (REFERENCE_WIDTH / channels) ** 0.5))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def set_norm_groups(module: nn.Module, groups: int) -> None:
    """Sets the number of groups of all group normalizations inside a module."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.num_groups = groups


class TemporalConv(nn.Conv3d):
    """Convolution over three neighbours in time, computed as a 2-D convolution over [time, places].

    PyTorch has a fast CPU kernel for the latter only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolves [batch, channels, time, height, width]."""
        pictures = F.conv2d(x.flatten(3), self.weight[..., 0], self.bias, padding=(1, 0))
        return pictures.unflatten(3, x.shape[3:])


def speed_up_temporal_convolutions(module: nn.Module) -> None:
    """Turns the convolutions over three neighbours in time inside a module into `TemporalConv`; weights stay."""
    for part in module.modules():
        if type(part) is nn.Conv3d and part.kernel_size == (3, 1, 1) and part.padding == (1, 0, 0):
            part.__class__ = TemporalConv


def learned_embedding(*shape: int) -> nn.Parameter:
    """Creates learned embeddings of positions or queries."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def grid_positions(places: int, width: int) -> Tensor:
    """Computes sinusoidal embeddings of the rows and columns of a square's places, row by row, [places, width]."""
    side, quarter = ceil(places**0.5), width // 4
    rates = 100.0 ** -(torch.arange(quarter) / max(quarter, 1))
    place = torch.arange(places)[:, None]
    angles = torch.cat([place // side * rates, place % side * rates], dim=1)
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width - 4 * quarter))


def _zeros(dim: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(dim))


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"{dim} channels cannot be split into {num_heads} heads; choose a divisor")
