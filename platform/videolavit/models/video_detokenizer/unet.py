"""Stable Video Diffusion's U-Net with motion as its cross-attention context (reference 4.4)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..layers import merge_heads, split_heads
from ..network import STRICT, Network
from .motion_condition import GRID


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionUNetConfig:
    """Shape of the video U-Net; the defaults are the published ones, which are SVD's but for `in_channels`.

    Args:
        block_out_channels: Channels of each level. All levels but the last have attention.
        num_attention_heads: Heads of each level.
        layers_per_block: Residual blocks of a level.
        cross_attention_dim: Channels of the motion context.
        addition_time_embed_dim: Channels of each of the three added ids' sinusoids.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    layers_per_block: int = 2
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256

    @property
    def pixel_multiple(self) -> int:
        """Sides of a video in pixels must be multiples of this: the VAE divides by 8, each level but the last by 2."""
        return 8 << (len(self.block_out_channels) - 1)


ADDED_IDS = 3
"""Frames a second, motion bucket, noise strength."""

IN_CHANNELS, OUT_CHANNELS = 10, 4
"""Noisy latent, reference latent and two of motion in; a latent out."""


class MotionUNet(Network[MotionUNetConfig]):
    """The stock network; only what its cross-attention looks at is replaced.

    The spatial attention of a frame sees that frame's 256 motion tokens. The temporal attention at a place sees the
    motion tokens of all frames at that place. One call at a time: the context lives in the attention processors
    while it lasts.
    """

    Config = MotionUNetConfig

    def __init__(self, config: MotionUNetConfig) -> None:
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
        self._context = MotionContext()
        self.unet.set_attn_processor(
            {name: _processor(name, stock, self._context) for name, stock in self.unet.attn_processors.items()}
        )

    def forward(
        self, sample: Tensor, timestep: Tensor | float, motion_context: Tensor, added_time_ids: Tensor
    ) -> Tensor:
        """The network's prediction [batch, time, 4, height, width].

        Args:
            sample: [batch, time, 10, height, width]: noisy latent, reference latent, motion at latent size.
            timestep: Noise level as the scheduler gives it.
            motion_context: [batch, time, 256, channels] of the motion condition encoder.
            added_time_ids: [batch, 3]: frames a second, motion bucket, noise strength.

        Raises:
            ValueError: the context is not of this batch, these frames or 256 tokens.
        """
        expected = (*sample.shape[:2], GRID * GRID, self.config.cross_attention_dim)
        if motion_context.shape != expected:
            raise ValueError(f"motion_context must be {list(expected)}, not {list(motion_context.shape)}")
        unused = sample.new_zeros(len(sample), 1, 1)
        with self._context.use(
            motion_context, (sample.shape[-2], sample.shape[-1]), len(self.config.block_out_channels)
        ):
            return self.unet(sample, timestep, unused, added_time_ids, return_dict=False)[0]


class MotionContext:
    """The motion tokens of the call that is running."""

    def __init__(self) -> None:
        self.tokens: Tensor = torch.empty(0)
        self._sizes: dict[int, tuple[int, int]] = {}

    @contextlib.contextmanager
    def use(self, tokens: Tensor, latent_size: tuple[int, int], levels: int) -> Iterator[None]:
        """Sets the tokens [batch, time, 256, channels] for a call on latents of that size."""
        self.tokens, self._sizes = tokens, {}
        height, width = latent_size
        for _ in range(levels):
            self._sizes[height * width] = (height, width)
            height, width = -(-height // 2), -(-width // 2)
        try:
            yield
        finally:
            self.tokens = torch.empty(0)

    def token_of_place(self, places: int) -> Tensor:
        """Which of the 256 tokens each place of a feature map looks at: the nearest, [places]."""
        height, width = self._sizes[places]
        index = torch.arange(GRID * GRID, dtype=torch.float32, device=self.tokens.device).view(1, 1, GRID, GRID)
        if (height, width) != (GRID, GRID):
            index = F.interpolate(index, scale_factor=(height / GRID, width / GRID), mode="nearest")
        return index.flatten().long()


class SpatialMotionAttention(AttnProcessor2_0):
    """Cross-attention of a frame to its own motion tokens."""

    def __init__(self, context: MotionContext) -> None:
        super().__init__()
        self._context = context

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """[batch * time, places, channels] -> the same."""
        return super().__call__(attn, hidden_states, self._context.tokens.flatten(0, 1))


class TemporalMotionAttention:
    """Cross-attention of a place to its motion tokens over time.

    Keys and values are projected once for each of the 256 tokens and then spread over the places, which is what
    spreading first would give, with the work of 256 places at any size.
    """

    def __init__(self, context: MotionContext) -> None:
        self._context = context

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """[batch * places, time, channels] -> the same."""
        tokens = self._context.tokens
        place = self._context.token_of_place(len(hidden_states) // len(tokens))
        key, value = (
            split_heads(project(tokens).transpose(1, 2)[:, place].flatten(0, 1), attn.heads)
            for project in (attn.to_k, attn.to_v)
        )
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        attended = merge_heads(F.scaled_dot_product_attention(query, key, value))
        return attn.to_out[1](attn.to_out[0](attended))


def _processor(name: str, stock: Any, context: MotionContext) -> Any:
    if ".attn2." not in name:
        return stock
    temporal = ".temporal_transformer_blocks." in name
    return TemporalMotionAttention(context) if temporal else SpatialMotionAttention(context)
