"""Motion tokenizer: a space-time transformer around a codebook (docs/model.md, section 3)."""

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from videolavit.media.motion import TOKENIZER_SCALE

from ..layers import SpaceTimeBlock, init_weights, learned_embedding, projection
from ..network import STRICT, Network
from ..quantizer import Quantizer

Stride = tuple[int, int, int]
STRIDES: tuple[Stride, ...] = ((1, 2, 2), (2, 1, 1), (2, 1, 1), (2, 2, 2))
"""Strides of the encoder's four stages, (time, height, width)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionTokenizerConfig:
    """Shape of the motion tokenizer; the defaults are the published ones.

    Args:
        dim: Channels of encoder and decoder.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of an MLP, in multiples of `dim`.
        blocks_per_stage: Blocks per stage; encoder and decoder have four stages each.
        num_frames: Frames per clip; a multiple of 8.
        grid_height: Rows of the motion grid; a multiple of 4.
        grid_width: Columns of the motion grid; a multiple of 4.
        num_codes: Size of the codebook.
        code_dim: Channels of a code.
    """

    dim: int = 512
    num_heads: int = 8
    mlp_ratio: float = 4.0
    blocks_per_stage: int = 3
    num_frames: int = 24
    grid_height: int = 20
    grid_width: int = 36
    num_codes: int = 1024
    code_dim: int = 32

    def __post_init__(self) -> None:
        if self.num_frames % 8 or self.grid_height % 4 or self.grid_width % 4:
            raise ValueError("num_frames must be a multiple of 8, grid_height and grid_width multiples of 4")

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the motion grid."""
        return self.grid_height, self.grid_width

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(time, height, width) of the codes of a clip; 3 x 5 x 9 as published."""
        return self.num_frames // 8, self.grid_height // 4, self.grid_width // 4

    @property
    def num_tokens(self) -> int:
        time, height, width = self.token_grid
        return time * height * width


class MotionTokenizer(Network[MotionTokenizerConfig]):
    """Encodes motion [batch, 2, time, height, width] at the tokenizer scale to codes [batch, tokens], and decodes."""

    Config = MotionTokenizerConfig

    def __init__(self, config: MotionTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = MotionEncoder(config)
        self.decoder = MotionDecoder(config)
        self.encode_task_layer = projection(config.dim, config.code_dim)
        self.decode_task_layer = projection(config.dim, 2)
        self.apply(init_weights)
        self.quantize = Quantizer(config.num_codes, config.code_dim)

    def encode(self, motion: Tensor) -> Tensor:
        """Encodes motion to codes [batch, tokens], ordered by time, row and column.

        Args:
            motion: Motion from `media.motion_features`, [batch, 2, time, height, width].

        Raises:
            ValueError: the motion does not have the shape of the config.
        """
        expected = (2, self.config.num_frames, self.config.grid_height, self.config.grid_width)
        if motion.shape[1:] != expected:
            raise ValueError(f"motion must be [batch, {', '.join(map(str, expected))}], not {list(motion.shape)}")
        return self.quantize(self.to_codebook(motion)).flatten(1)

    def to_codebook(self, motion: Tensor) -> Tensor:
        """Encodes motion to vectors before quantization, [batch, t, h, w, code_dim]."""
        return self.encode_task_layer(self.encoder(motion))

    def decode(self, ids: Tensor) -> Tensor:
        """Decodes codes to motion [batch, 2, time, height, width] at the tokenizer scale.

        Args:
            ids: Codes, [batch, tokens].

        Raises:
            ValueError: a clip has another number of codes, or a code is not in the codebook.
        """
        if ids.ndim != 2 or ids.shape[1] != self.config.num_tokens:
            raise ValueError(f"motion ids must be [batch, {self.config.num_tokens}], not {list(ids.shape)}")
        return self.from_codebook(self.quantize.lookup(ids.unflatten(1, self.config.token_grid)))

    def from_codebook(self, codes: Tensor) -> Tensor:
        """Decodes code vectors [batch, t, h, w, code_dim] to motion [batch, 2, time, height, width]."""
        return self.decode_task_layer(self.decoder(codes)).movedim(-1, 1)

    def decode_to(self, ids: Tensor, height: int, width: int) -> Tensor:
        """Decodes codes to motion [batch, 2, time, height, width] at the U-Net scale and the given size."""
        return resize_frames(self.decode(ids), height, width) / TOKENIZER_SCALE


class MotionEncoder(nn.Module):
    """Encodes motion [batch, 2, time, height, width] to [batch, time / 8, height / 4, width / 4, dim]."""

    def __init__(self, config: MotionTokenizerConfig) -> None:
        super().__init__()
        self.pos_embed = learned_embedding(1, config.grid_height * config.grid_width, config.dim)
        self.temp_pos = learned_embedding(1, config.num_frames, config.dim)
        self.in_proj = nn.Linear(2, config.dim)
        self.blocks = _blocks(config)
        self.down_sample_layers = nn.ModuleList(Downsample(config.dim, stride) for stride in STRIDES)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, motion: Tensor) -> Tensor:
        x = self.in_proj(motion.movedim(1, -1))
        x = x + self.pos_embed.view(1, 1, *x.shape[2:]) + self.temp_pos[:, :, None, None]
        for stage, downsample in enumerate(self.down_sample_layers):
            x = downsample(_run_stage(self.blocks, stage, x))
        return self.norm(x)


class MotionDecoder(nn.Module):
    """Decodes [batch, t, h, w, code_dim] to [batch, 8 t, 4 h, 4 w, dim], without position embeddings as published."""

    def __init__(self, config: MotionTokenizerConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.code_dim, config.dim)
        self.up_sample_layers = nn.ModuleList(Upsample(config.dim, stride) for stride in reversed(STRIDES))
        self.blocks = _blocks(config)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.in_proj(codes)
        for stage, upsample in enumerate(self.up_sample_layers):
            x = _run_stage(self.blocks, stage, upsample(x))
        return self.norm(x)


class Downsample(nn.Module):
    """Strided 3 x 3 x 3 convolution. A halved axis is padded at its end only."""

    def __init__(self, dim: int, stride: Stride) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim, 3, stride)
        # F.pad counts axes from the last one
        self.padding = [side for step in reversed(stride) for side in ((0, 1) if step == 2 else (1, 1))]

    def forward(self, x: Tensor) -> Tensor:
        """Halves the strided axes of [batch, time, height, width, dim]."""
        return self.conv(F.pad(x.movedim(-1, 1), self.padding)).movedim(1, -1)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3 x 3 x 3 convolution."""

    def __init__(self, dim: int, factor: Stride) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv3d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies the axes of [batch, time, height, width, dim] by the factor."""
        x = x.movedim(-1, 1)
        for axis, times in enumerate(self.factor, start=2):
            x = x.repeat_interleave(times, dim=axis) if times > 1 else x
        return self.conv(x).movedim(1, -1)


def resize_frames(motion: Tensor, height: int, width: int) -> Tensor:
    """Resizes every frame of [batch, 2, time, h, w] bicubically, without antialiasing, in float32."""
    if motion.shape[-2:] == (height, width):
        return motion
    frames = motion.transpose(1, 2).flatten(0, 1).float()
    resized = F.interpolate(frames, (height, width), mode="bicubic", align_corners=False)
    return resized.unflatten(0, (len(motion), -1)).transpose(1, 2).to(motion.dtype)


def _blocks(config: MotionTokenizerConfig) -> nn.ModuleList:
    depth = config.blocks_per_stage * len(STRIDES)
    return nn.ModuleList(SpaceTimeBlock(config.dim, config.num_heads, config.mlp_ratio) for _ in range(depth))


def _run_stage(blocks: nn.ModuleList, stage: int, x: Tensor) -> Tensor:
    """Runs a stage's blocks on [batch, time, height, width, dim]."""
    tokens = x.flatten(2, 3)
    per_stage = len(blocks) // len(STRIDES)
    for block in list(blocks)[stage * per_stage : (stage + 1) * per_stage]:
        tokens = block(tokens)
    return torch.unflatten(tokens, 2, x.shape[2:4])
