"""Shape of a VAE made from scratch. A loaded one brings its own config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from ..layers import set_norm_groups, speed_up_temporal_convolutions
from ..network import STRICT

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VAEConfig:
    """Shape of a VAE; the defaults are those of SDXL's.

    Args:
        block_out_channels: Channels of each level. Every level but the first halves the sides of the picture.
        layers_per_block: Residual blocks per level.
        scaling_factor: Factor that gives latents a standard deviation of 1.
        force_upcast: True to run in float32 where float16 is asked for, because half precision overflows.
        norm_groups: Groups of each group normalization; a narrow network needs fewer.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    scaling_factor: float = 0.13025
    force_upcast: bool = True
    norm_groups: int = 32

    def build(self) -> AutoencoderKL:
        """Builds a VAE of pictures."""
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
        """Builds a VAE of videos: its decoder also looks at neighbouring frames."""
        from diffusers import AutoencoderKLTemporalDecoder

        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            down_block_types=("DownEncoderBlock2D",) * len(self.block_out_channels),
            scaling_factor=self.scaling_factor,
            force_upcast=self.force_upcast,
        )
        if self.norm_groups != 32:  # the library fixes it at 32; loading reads it from the config
            vae.register_to_config(norm_num_groups=self.norm_groups)
            set_norm_groups(vae, self.norm_groups)
        speed_up_temporal_convolutions(vae)
        return vae
