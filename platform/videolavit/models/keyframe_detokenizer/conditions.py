"""Condition decoder: visual codes to the conditions of the keyframe U-Net (docs/model.md, section 4.1)."""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..layers import (
    MLP,
    Attention,
    CrossAttention,
    grid_positions,
    init_weights,
    learned_embedding,
    merge_heads,
    projection,
    split_heads,
)
from ..network import STRICT, Network
from ..quantizer import check_codes

MASKED = -10000.0
"""Added to attention scores of padding."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConditionDecoderConfig:
    """Shape of the condition decoder; the defaults are the published ones.

    Args:
        num_codes: Size of the visual codebook.
        code_dim: Channels of a code.
        dim: Channels of the trunk.
        depth: Blocks of the trunk.
        num_heads: Attention heads of the trunk and of the pooling.
        mlp_ratio: Hidden channels of an MLP, in multiples of `dim`.
        max_codes: Largest number of codes per image; also the number of queries and of reconstructed features.
        feature_dim: Channels of the reconstructed ViT features.
        context_dims: Channels of the two projections that make up the U-Net's context.
        pooled_dim: Channels of the pooled condition.
    """

    num_codes: int = 16384
    code_dim: int = 32
    dim: int = 1408
    depth: int = 12
    num_heads: int = 16
    mlp_ratio: float = 4.3637
    max_codes: int = 256
    feature_dim: int = 1408
    context_dims: tuple[int, int] = (768, 1280)
    pooled_dim: int = 1280


class ConditionDecoder(Network[ConditionDecoderConfig]):
    """Decodes visual codes of images to (context [batch, queries, channels], pooled [batch, pooled_dim]).

    Args:
        config: Shape of the network.
        codebook: Codebook of the visual tokenizer, [num_codes, code_dim]. It is not among the decoder's weights, and
            may be set later.
    """

    Config = ConditionDecoderConfig

    def __init__(self, config: ConditionDecoderConfig, codebook: Tensor | None = None) -> None:
        super().__init__(config)
        self.pos_embed = learned_embedding(1, config.max_codes, config.dim)
        self.query_embed = nn.Parameter(grid_positions(config.max_codes, config.dim)[None])
        self.in_proj = nn.Linear(config.code_dim, config.dim)
        self.blocks = nn.ModuleList(ConditionBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.decode_task_layer = projection(config.dim, config.feature_dim, config.dim)
        self.unet_proj_1, self.unet_proj_2 = (nn.Linear(config.feature_dim, size) for size in config.context_dims)
        self.unet_attnpool = AttentionPool(config)
        self.apply(init_weights)
        # Codes are unit vectors: this makes their projections as large as the queries.
        nn.init.normal_(self.in_proj.weight)
        self.register_buffer("codebook", codebook, persistent=False)
        self.codebook: Tensor | None

    def forward(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes the conditions of images.

        Args:
            ids: Codes of each image, int64 [n].

        Raises:
            ValueError: too many codes for an image, a code that the codebook does not have, or no codebook.
        """
        return self.of_features(self.features(ids))

    def of_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the conditions from reconstructed features."""
        context = torch.cat([self.unet_proj_1(features), self.unet_proj_2(features)], dim=-1)
        return context, self.unet_attnpool(features)

    def features(self, ids: list[Tensor]) -> Tensor:
        """Reconstructs ViT features [batch, queries, feature_dim] from codes."""
        return self.reconstruct(*self._lookup(ids))

    def reconstruct(self, codes: Tensor, real: Tensor) -> Tensor:
        """Reconstructs ViT features [batch, queries, feature_dim] from code vectors.

        Args:
            codes: Code vectors, [batch, n, code_dim], n up to `max_codes`.
            real: Mask, bool [batch, n]; False for padding.
        """
        vectors = self.in_proj(codes) * real[..., None]
        vectors = vectors + self.pos_embed[:, : codes.shape[1]]
        padding = torch.where(real, 0.0, MASKED).to(vectors.dtype)[:, None, None]
        x = self.query_embed.expand(len(codes), -1, -1)
        for block in self.blocks:
            x = block(x, vectors, padding)
        return self.decode_task_layer(self.norm(x))

    def _lookup(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns code vectors [batch, longest, code_dim] and a mask [batch, longest] that is False for padding."""
        if self.codebook is None:
            raise ValueError("this decoder has no codebook; give it the visual tokenizer's")
        longest = max(1, *(len(one) for one in ids))
        if longest > self.config.max_codes:
            raise ValueError(f"an image has {longest} visual codes; at most {self.config.max_codes} fit")
        rows = [one.to(self.codebook.device) for one in ids]
        padded = pad_sequence([*rows, rows[0].new_zeros(longest)], batch_first=True)[:-1]
        check_codes(padded, self.config.num_codes)
        counts = torch.tensor([len(one) for one in ids], device=padded.device)
        return self.codebook[padded], torch.arange(longest, device=padded.device) < counts[:, None]


class ConditionBlock(nn.Module):
    """Self-attention of the queries, attention to the codes, MLP; pre-norm."""

    def __init__(self, config: ConditionDecoderConfig) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(config.dim) for _ in range(3))
        self.self_attn = Attention(config.dim, config.num_heads)
        self.cross_attn = CrossAttention(config.dim, config.num_heads)
        self.mlp = MLP(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x: Tensor, codes: Tensor, padding: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm0(x))
        # an image without codes attends to nothing instead of to its padding
        has_codes = (padding == 0).any(-1).to(x.dtype)
        x = x + self.cross_attn(self.norm1(x), codes, padding) * has_codes
        return x + self.mlp(self.norm2(x))


class AttentionPool(nn.Module):
    """CLIP's attention pooling: the mean token, with positions, attends to all tokens."""

    def __init__(self, config: ConditionDecoderConfig) -> None:
        super().__init__()
        dim = config.feature_dim
        self.num_heads = config.num_heads
        self.positional_embedding = nn.Parameter(torch.randn(config.max_codes + 1, dim) * dim**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.c_proj = nn.Linear(dim, config.pooled_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, tokens, feature_dim] -> [batch, pooled_dim]."""
        tokens = torch.cat([features.mean(1, keepdim=True), features], dim=1) + self.positional_embedding
        query, key, value = (
            split_heads(project(x), self.num_heads)
            for project, x in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.c_proj(merge_heads(attended)).squeeze(1)
