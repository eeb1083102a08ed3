"""Motion to the context of the video U-Net (docs/model.md, section 4.3)."""

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..layers import SpaceTimeBlock, init_weights, table
from ..motion_tokenizer import resize_frames
from ..network import STRICT, Network

GRID = 16
"""Side of the square that motion is resized to."""

FIRST_GAIN = 40.0
"""Of the first weights that motion at the U-Net's scale meets. Slow things move by some hundredths there: so they begin
as loud as the latents, and are not learned last."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionConditionEncoderConfig:
    """Shape of the motion condition encoder; the defaults are the published ones.

    Args:
        dim: Channels.
        num_heads: Attention heads.
        depth: Blocks.
        mlp_ratio: Hidden channels of an MLP, in multiples of `dim`.
        out_channels: Channels of the context.
        temporal_frames: Length of a learned table of frame positions; None, as published, is without one.
    """

    dim: int = 512
    num_heads: int = 8
    depth: int = 12
    mlp_ratio: float = 4.0
    out_channels: int = 1024
    temporal_frames: int | None = None


class MotionConditionEncoder(Network[MotionConditionEncoderConfig]):
    """Motion [batch, 2, time, height, width] at U-Net scale -> context [batch, time, 256, out_channels]."""

    Config = MotionConditionEncoderConfig

    def __init__(self, config: MotionConditionEncoderConfig) -> None:
        super().__init__(config)
        self.pos_embed = table(1, GRID * GRID, config.dim)
        self.temp_pos = table(1, config.temporal_frames, config.dim) if config.temporal_frames else None
        self.in_proj = nn.Linear(2, config.dim)
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(config.dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.out_proj = nn.Linear(config.dim, config.out_channels)
        self.apply(init_weights)
        self.in_proj.weight.data *= FIRST_GAIN

    def forward(self, motion: Tensor) -> Tensor:
        """Raises ValueError if a temporal table is too short for the motion."""
        x = self.in_proj(resize_frames(motion, GRID, GRID).movedim(1, -1).flatten(2, 3)) + self.pos_embed
        if self.temp_pos is not None:
            if x.shape[1] > self.temp_pos.shape[1]:
                raise ValueError(f"{x.shape[1]} frames of motion; this encoder has {self.temp_pos.shape[1]} positions")
            x = x + self.temp_pos[:, : x.shape[1], None]
        for block in self.blocks:
            x = block(x)
        return self.out_proj(self.norm(x))
