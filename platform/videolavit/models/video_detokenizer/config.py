"""Shapes of the video detokenizer, for models made from scratch."""

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..network import STRICT
from ..vae import VAEConfig
from .motion_condition import MotionConditionEncoderConfig
from .unet import MotionUNetConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoDetokenizerConfig:
    """Shapes of the video detokenizer's networks.

    Args:
        motion_encoder: Shape of the motion condition encoder.
        unet: Shape of the U-Net.
        vae: Shape of the VAE.
    """

    motion_encoder: MotionConditionEncoderConfig = Field(default_factory=MotionConditionEncoderConfig)
    unet: MotionUNetConfig = Field(default_factory=MotionUNetConfig)
    vae: VAEConfig = Field(default_factory=lambda: VAEConfig(scaling_factor=0.18215))
