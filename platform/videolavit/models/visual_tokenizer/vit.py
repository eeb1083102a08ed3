"""Frozen vision transformer of EVA-CLIP g/14's shape (docs/model.md, section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP, Attention, grid_positions, init_weights, learned_embedding
from .config import VisualTokenizerConfig

EPS = 1e-6


class VisionTransformer(nn.Module):
    """Encodes images [batch, 3, size, size] to patch features [batch, patches, width] of the last block.

    The final norm and the head are in the published weights and unused.
    """

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.cls_token = learned_embedding(1, 1, config.width)
        # The position embedding is not trained; with small random values the features would not depend on places.
        places = grid_positions(config.num_patches, config.width)
        self.pos_embed = nn.Parameter(F.pad(places, (0, 0, 1, 0))[None])
        self.patch_embed = PatchEmbedding(config.patch_size, config.width)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.vit_layers))
        self.norm = nn.LayerNorm(config.width, EPS)
        self.head = nn.Linear(config.width, config.vit_head_out)
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


class PatchEmbedding(nn.Module):
    """Projects images to one vector per patch, in raster order."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class ViTBlock(nn.Module):
    """Pre-norm block: attention and MLP."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width, EPS), nn.LayerNorm(config.width, EPS)
        self.attn = Attention(config.width, config.vit_heads, key_bias=False)
        self.mlp = MLP(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
