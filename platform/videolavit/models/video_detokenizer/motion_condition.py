"""Motion condition encoder: motion to the context of the video U-Net (docs/model.md, section 4.3)."""

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..layers import SpaceTimeBlock, init_weights, learned_embedding
from ..motion_tokenizer import resize_frames
from ..network import STRICT, Network

GRID = 16
"""Side of the square map that motion is resized to."""

MOTION_GAIN = 40.0
"""Factor of the initial weights that read motion at the U-Net scale. Slow motion is a few hundredths on that scale;
with the factor it starts as large as the latents and is learned as early."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionConditionEncoderConfig:
    """Shape of the motion condition encoder; the defaults are the published ones.

    Args:
        dim: Channels.
        num_heads: Attention heads.
        depth: Blocks.
        mlp_ratio: Hidden channels of an MLP, in multiples of `dim`.
        out_channels: Channels of the context.
        temporal_frames: Number of learned embeddings of frame positions; None, as published, for no such embeddings.
    """

    dim: int = 512
    num_heads: int = 8
    depth: int = 12
    mlp_ratio: float = 4.0
    out_channels: int = 1024
    temporal_frames: int | None = None


class MotionConditionEncoder(Network[MotionConditionEncoderConfig]):
    """Encodes motion [batch, 2, time, height, width] at the U-Net scale to context [batch, time, 256, channels]."""

    Config = MotionConditionEncoderConfig

    def __init__(self, config: MotionConditionEncoderConfig) -> None:
        super().__init__(config)
        self.pos_embed = learned_embedding(1, GRID * GRID, config.dim)
        self.temp_pos = learned_embedding(1, config.temporal_frames, config.dim) if config.temporal_frames else None
        self.in_proj = nn.Linear(2, config.dim)
        self.blocks = nn.ModuleList(
            SpaceTimeBlock(config.dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.out_proj = nn.Linear(config.dim, config.out_channels)
        self.apply(init_weights)
        self.in_proj.weight.data *= MOTION_GAIN

    def forward(self, motion: Tensor) -> Tensor:
        """Raises ValueError if there are fewer frame positions than frames."""
        x = self.in_proj(resize_frames(motion, GRID, GRID).movedim(1, -1).flatten(2, 3)) + self.pos_embed
        if self.temp_pos is not None:
            if x.shape[1] > self.temp_pos.shape[1]:
                raise ValueError(f"{x.shape[1]} frames of motion; this encoder has {self.temp_pos.shape[1]} positions")
            x = x + self.temp_pos[:, : x.shape[1], None]
        for block in self.blocks:
            x = block(x)
        return self.out_proj(self.norm(x))
