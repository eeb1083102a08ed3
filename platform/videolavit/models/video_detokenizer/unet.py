"""Video U-Net: Stable Video Diffusion's, with motion as its cross-attention context (docs/model.md, section 4.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..layers import merge_heads, set_norm_groups, speed_up_temporal_convolutions, split_heads
from ..network import STRICT, Network
from .motion_condition import GRID, MOTION_GAIN

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionUNetConfig:
    """Shape of the video U-Net; the defaults are the published ones.

    Args:
        block_out_channels: Channels of each level. All levels but the last have attention.
        num_attention_heads: Attention heads of each level.
        layers_per_block: Residual blocks per level.
        cross_attention_dim: Channels of the motion context.
        addition_time_embed_dim: Channels of the sinusoidal embedding of each added id.
        norm_groups: Groups of each group normalization; a narrow network needs fewer.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256
    norm_groups: int = 32


ADDED_IDS = 3
"""Number of added ids: frames per second, motion bucket, noise strength."""

IN_CHANNELS, OUT_CHANNELS, MOTION_CHANNELS = 10, 4, 2
"""Input: a noisy latent, a reference latent and two channels of motion. Output: a latent."""


class MotionUNet(Network[MotionUNetConfig]):
    """Stock U-Net of `diffusers` whose cross-attention reads motion tokens.

    The spatial attention of a frame attends to that frame's 256 motion tokens. The temporal attention at a place
    attends to the motion tokens of all frames at that place. Calls must not overlap, because the attention processors
    hold the context of the current one.
    """

    Config = MotionUNetConfig

    def __init__(self, config: MotionUNetConfig) -> None:
        from diffusers import UNetSpatioTemporalConditionModel

        super().__init__(config)
        attention = len(config.block_out_channels) - 1
        self.unet = UNetSpatioTemporalConditionModel(
            in_channels=IN_CHANNELS,
            out_channels=OUT_CHANNELS,
            down_block_types=("CrossAttnDownBlockSpatioTemporal",) * attention + ("DownBlockSpatioTemporal",),
            up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * attention,
            block_out_channels=config.block_out_channels,
            num_attention_heads=config.num_attention_heads,
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.cross_attention_dim,
            addition_time_embed_dim=config.addition_time_embed_dim,
            projection_class_embeddings_input_dim=ADDED_IDS * config.addition_time_embed_dim,
        )
        set_norm_groups(self.unet, config.norm_groups)
        speed_up_temporal_convolutions(self.unet)
        self.unet.conv_in.weight.data[:, -MOTION_CHANNELS:] *= MOTION_GAIN
        self._context = MotionContext()
        self.unet.set_attn_processor(
            {name: _processor(name, stock, self._context) for name, stock in self.unet.attn_processors.items()}
        )

    def forward(
        self, sample: Tensor, timestep: Tensor | float, motion_context: Tensor, added_time_ids: Tensor
    ) -> Tensor:
        """Predicts [batch, time, 4, height, width].

        Args:
            sample: Noisy latent, reference latent and motion, [batch, time, 10, height, width].
            timestep: Noise level from the scheduler.
            motion_context: Output of the motion condition encoder, [batch, time, 256, channels]. If it has fewer rows,
                it belongs to the last rows of the batch, and the context of the others is zeros.
            added_time_ids: Frames per second, motion bucket and noise strength, [batch, 3].

        Raises:
            ValueError: the context has another number of frames or tokens, or more rows than the batch.
        """
        expected = (sample.shape[1], GRID * GRID, self.config.cross_attention_dim)
        if motion_context.shape[1:] != expected or not 0 < len(motion_context) <= len(sample):
            shape = f"[1 to {len(sample)}, {', '.join(map(str, expected))}]"
            raise ValueError(f"motion_context must be {shape}, not {list(motion_context.shape)}")
        unused = sample.new_zeros(len(sample), 1, 1)
        sizes = _level_sizes(sample.shape[-2], sample.shape[-1], len(self.config.block_out_channels))
        with self._context.use(motion_context, len(sample), sizes):
            return self.unet(sample, timestep, unused, added_time_ids, return_dict=False)[0]

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        """Keeps keys and values of the context between calls while the body runs: a sampler's steps share them."""
        return self._context.remember()


class MotionContext:
    """Motion tokens of the current call, and their keys and values."""

    def __init__(self) -> None:
        self.tokens = torch.empty(0)
        self.batch = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        self._remembered: dict[Attention, tuple[Tensor, Tensor]] | None = None

    @contextlib.contextmanager
    def use(self, tokens: Tensor, batch: int, sizes: dict[int, tuple[int, int]]) -> Iterator[None]:
        """Sets the tokens [rows, time, 256, channels] for a call on a batch.

        Args:
            tokens: Motion tokens.
            batch: Rows of the batch.
            sizes: (height, width) of each feature map by its number of places.
        """
        if self._remembered is not None and tokens is not self.tokens:
            self._remembered.clear()
        self.tokens, self.batch, self._sizes = tokens, batch, sizes
        try:
            yield
        finally:
            # a backward pass may run parts of the call again
            if self._remembered is None and not torch.is_grad_enabled():
                self.tokens = torch.empty(0)

    @contextlib.contextmanager
    def remember(self) -> Iterator[None]:
        """Keeps keys and values while the body runs and the tokens stay the same."""
        self._remembered = {}
        try:
            yield
        finally:
            self._remembered, self.tokens = None, torch.empty(0)

    def keys_and_values(self, attn: Attention) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values of the tokens, each [rows, time, 256, channels]."""
        if self._remembered is None:
            return attn.to_k(self.tokens), attn.to_v(self.tokens)
        if attn not in self._remembered:
            self._remembered[attn] = attn.to_k(self.tokens), attn.to_v(self.tokens)
        return self._remembered[attn]

    def token_of_place(self, places: int) -> Tensor:
        """Returns the index of the nearest of the 256 tokens for each place of a feature map, [places]."""
        height, width = self._sizes[places]
        index = torch.arange(GRID * GRID, dtype=torch.float32, device=self.tokens.device).view(1, 1, GRID, GRID)
        if (height, width) != (GRID, GRID):
            index = F.interpolate(index, scale_factor=(height / GRID, width / GRID), mode="nearest")
        return index.flatten().long()


class SpatialMotionAttention:
    """Attention processor that attends from a frame to its own motion tokens."""

    def __init__(self, context: MotionContext) -> None:
        self._context = context

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """Attends from [batch * time, places, channels]."""
        key, value = (part.flatten(0, 1) for part in self._context.keys_and_values(attn))
        return _attend(attn, hidden_states, key, value)


class TemporalMotionAttention:
    """Attention processor that attends from a place to its motion tokens over time.

    Keys and values are projected for the 256 tokens and then copied to the places. Copying the tokens first would give
    the same result with more work.
    """

    def __init__(self, context: MotionContext) -> None:
        self._context = context

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """Attends from [batch * places, time, channels]."""
        place = self._context.token_of_place(len(hidden_states) // self._context.batch)
        key, value = (part.transpose(1, 2)[:, place].flatten(0, 1) for part in self._context.keys_and_values(attn))
        return _attend(attn, hidden_states, key, value)


def _attend(attn: Attention, hidden_states: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attends from the last rows to keys and values. The other rows get the output bias, as with a context of zeros."""
    rows = len(key)
    query = split_heads(attn.to_q(hidden_states[-rows:]), attn.heads)
    attended = F.scaled_dot_product_attention(query, split_heads(key, attn.heads), split_heads(value, attn.heads))
    projected = attn.to_out[1](attn.to_out[0](merge_heads(attended)))
    if rows == len(hidden_states):
        return projected
    unconditional = attn.to_out[0].bias.expand(len(hidden_states) - rows, *projected.shape[1:])
    return torch.cat([unconditional.to(projected.dtype), projected])


def _processor(name: str, stock: Any, context: MotionContext) -> Any:
    if ".attn2." not in name:
        return stock
    temporal = ".temporal_transformer_blocks." in name
    return TemporalMotionAttention(context) if temporal else SpatialMotionAttention(context)


def _level_sizes(height: int, width: int, levels: int) -> dict[int, tuple[int, int]]:
    sizes = {}
    for _ in range(levels):
        sizes[height * width] = (height, width)
        height, width = -(-height // 2), -(-width // 2)
    return sizes
