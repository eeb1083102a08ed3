"""Shapes of the keyframe U-Net and the VAEs, for models made from scratch. Loaded ones bring their own configs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from ..layers import set_norm_groups, speed_up_temporal_convolutions
from ..network import STRICT

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, DDIMScheduler, UNet2DConditionModel

TIME_IDS = 6
"""Original height and width, crop top and left, target height and width."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyframeUNetConfig:
    """Shape of the keyframe U-Net; the defaults are SDXL's.

    Args:
        block_out_channels: Channels of each level. The first has no attention.
        layers_per_block: Residual blocks of a level.
        num_heads: Attention heads of each level.
        transformer_layers: Transformer blocks of an attention of each level.
        cross_attention_dim: Channels of the context.
        addition_time_embed_dim: Channels of each size id's sinusoid.
        pooled_dim: Channels of the pooled condition.
        norm_groups: Groups of a group normalization. With one channel each, features lose their brightness; so a narrow
            network needs fewer.
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
            attention_head_dim=self.num_heads,  # what the library calls so is the number of heads
            transformer_layers_per_block=self.transformer_layers,
            cross_attention_dim=self.cross_attention_dim,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=self.addition_time_embed_dim,
            projection_class_embeddings_input_dim=TIME_IDS * self.addition_time_embed_dim + self.pooled_dim,
            norm_num_groups=self.norm_groups,
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VAEConfig:
    """Shape of a VAE; the defaults are those of Stable Diffusion's.

    Args:
        block_out_channels: Channels of each level; the latent's sides are the picture's divided by 8 with four levels.
        layers_per_block: Residual blocks of a level.
        scaling_factor: What a latent is multiplied by.
        force_upcast: Whether half precision overflows in it.
        norm_groups: Groups of a group normalization, as in `KeyframeUNetConfig`.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    scaling_factor: float = 0.13025
    force_upcast: bool = True
    norm_groups: int = 32

    def build(self) -> AutoencoderKL:
        """A VAE of pictures."""
        from diffusers import AutoencoderKL

        levels = len(self.block_out_channels)
        return AutoencoderKL(
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            scaling_factor=self.scaling_factor,
            force_upcast=self.force_upcast,
            norm_num_groups=self.norm_groups,
        )

    def build_temporal(self) -> AutoencoderKLTemporalDecoder:
        """A VAE whose decoder looks at neighbouring frames."""
        from diffusers import AutoencoderKLTemporalDecoder

        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            down_block_types=("DownEncoderBlock2D",) * len(self.block_out_channels),
            scaling_factor=self.scaling_factor,
            force_upcast=self.force_upcast,
        )
        if self.norm_groups != 32:  # the library knows no other number here; the config says it to `ModelFolder.load`
            vae.register_to_config(norm_num_groups=self.norm_groups)
            set_norm_groups(vae, self.norm_groups)
        speed_up_temporal_convolutions(vae)
        return vae


def ddim_scheduler() -> DDIMScheduler:
    """Stable Diffusion's DDIM."""
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
