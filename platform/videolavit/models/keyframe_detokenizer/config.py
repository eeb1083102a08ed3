"""Shapes of the keyframe detokenizer, for models made from scratch. Loaded ones bring their own configs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..network import STRICT
from ..vae import VAEConfig
from .conditions import ConditionDecoderConfig

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

TIME_IDS = 6
"""Number of size ids: original height and width, crop top and left, target height and width."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyframeUNetConfig:
    """Shape of the keyframe U-Net; the defaults are SDXL's.

    Args:
        block_out_channels: Channels of each level. The first has no attention.
        layers_per_block: Residual blocks per level.
        num_heads: Attention heads of each level.
        transformer_layers: Transformer blocks per attention, of each level.
        cross_attention_dim: Channels of the context.
        addition_time_embed_dim: Channels of the sinusoidal embedding of each size id.
        pooled_dim: Channels of the pooled condition.
        norm_groups: Groups of each group normalization. A narrow network needs fewer: with one channel per group,
            features lose their brightness.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280)
    layers_per_block: int = 2
    num_heads: tuple[int, ...] = (5, 10, 20)
    transformer_layers: tuple[int, ...] = (1, 2, 10)
    cross_attention_dim: int = 2048
    addition_time_embed_dim: int = 256
    pooled_dim: int = 1280
    norm_groups: int = 32

    def build(self) -> UNet2DConditionModel:
        from diffusers import UNet2DConditionModel

        attention = len(self.block_out_channels) - 1
        return UNet2DConditionModel(
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attention,
            up_block_types=("CrossAttnUpBlock2D",) * attention + ("UpBlock2D",),
            attention_head_dim=self.num_heads,  # diffusers' name for the number of heads
            transformer_layers_per_block=self.transformer_layers,
            cross_attention_dim=self.cross_attention_dim,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=self.addition_time_embed_dim,
            projection_class_embeddings_input_dim=TIME_IDS * self.addition_time_embed_dim + self.pooled_dim,
            norm_num_groups=self.norm_groups,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyframeDetokenizerConfig:
    """Shapes of the keyframe detokenizer's networks.

    Args:
        conditions: Shape of the condition decoder.
        unet: Shape of the U-Net.
        vae: Shape of the VAE.
    """

    conditions: ConditionDecoderConfig = Field(default_factory=ConditionDecoderConfig)
    unet: KeyframeUNetConfig = Field(default_factory=KeyframeUNetConfig)
    vae: VAEConfig = Field(default_factory=VAEConfig)


def ddim_scheduler() -> DDIMScheduler:
    """Builds Stable Diffusion's DDIM scheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
