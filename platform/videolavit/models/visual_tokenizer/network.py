"""Visual tokenizer: ViT, selector, merger and codebook (docs/model.md, section 2)."""

import torch
from torch import Tensor, nn

from ..layers import MLP, Attention, CrossAttention, init_weights, merge_heads, projection
from ..network import Network
from ..quantizer import Quantizer
from .config import VisualTokenizerConfig
from .vit import VisionTransformer

KEEP = 0
"""Class of kept patches in the selector's output."""

SOFTMAX_EPS = 1e-6


class VisualTokenizer(Network[VisualTokenizerConfig]):
    """Selects patches of an image, merges the dropped ones into the kept ones, and quantizes these.

    A mask `keep` is bool [batch, patches]. Without a generator tokenizing is deterministic: a patch is kept if that is
    the likelier decision. With one the decision is drawn, as in the published model.
    """

    Config = VisualTokenizerConfig

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = VisionTransformer(config)
        self.token_predictor = Selector(config.width)
        self.causal_encoder = Merger(config)
        self.encode_task_layer = projection(config.width, config.code_dim)
        self.vit_proj = nn.Linear(config.width, config.features_dim) if config.features_dim else None
        for part in (self.token_predictor, self.causal_encoder, self.encode_task_layer, self.vit_proj):
            if part is not None:
                part.apply(init_weights)
        self.quantize = Quantizer(config.num_codes, config.code_dim)

    def patch_features(self, images: Tensor) -> Tensor:
        """Computes ViT features [batch, patches, width] of images [batch, 3, size, size] from `normalize_images`.

        Raises:
            ValueError: the images have another shape.
        """
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images must be [batch, 3, {size}, {size}], not {list(images.shape)}")
        return self.encoder(images)

    def keep_log_probs(self, features: Tensor) -> Tensor:
        """Returns log-probabilities [batch, patches, 2] of keeping (class 0) and dropping each patch."""
        return self.token_predictor(features)

    def choose(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Decides which patches to keep, [batch, patches]: the likelier class, or a draw with the generator."""
        log_probs = self.keep_log_probs(features)
        if generator is None:
            return log_probs[..., KEEP] > log_probs[..., 1 - KEEP]
        return keep_with_noise(log_probs, gumbel_noise(log_probs.shape, generator).to(log_probs.device))

    def merge(self, features: Tensor, keep: Tensor) -> Tensor:
        """Merges features, [batch, patches, width]; those of dropped patches are meaningless."""
        return self.causal_encoder(features, keep.bool())

    def encode(
        self, images: Tensor, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Encodes each image to one code per kept patch, int64, in raster order."""
        merged, keep = self._merged(images, keep, generator)
        ids = self.quantize(self.encode_task_layer(merged[keep]))
        return list(ids.split(keep.sum(1).tolist()))

    def embed(
        self, images: Tensor, keep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Encodes each image to continuous features [n, features_dim], one row per kept patch.

        Raises:
            ValueError: this tokenizer has none.
        """
        if self.vit_proj is None:
            raise ValueError("this visual tokenizer has no continuous features: features_dim is not set in its config")
        merged, keep = self._merged(images, keep, generator)
        return list(self.vit_proj(merged[keep]).split(keep.sum(1).tolist()))

    def _merged(self, images: Tensor, keep: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        features = self.patch_features(images)
        if keep is None:
            keep = self.choose(features, generator)
        elif keep.shape != features.shape[:2]:
            raise ValueError(f"keep must be {list(features.shape[:2])}, not {list(keep.shape)}")
        keep = keep.bool()
        return self.merge(features, keep), keep


class Selector(nn.Module):
    """Predicts log-probabilities [batch, patches, 2] of keeping and dropping from features [batch, patches, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, half // 2), nn.GELU(), nn.Linear(half // 2, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        local, context = self.in_conv(features).chunk(2, dim=-1)
        context = context.mean(dim=1, keepdim=True).expand_as(local)
        return self.out_conv(torch.cat([local, context], dim=-1)).log_softmax(-1)


class Merger(nn.Module):
    """Merges dropped patches into kept ones (docs/model.md, section 2.4).

    Kept patches attend to earlier kept ones and to all dropped ones. All positions are computed; callers select the
    kept ones.
    """

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(MergerBlock(config) for _ in range(config.merger_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor, keep: Tensor) -> Tensor:
        """Merges features [batch, patches, width].

        Args:
            features: ViT features.
            keep: Mask [batch, patches], bool or floating-point zeros and ones. Floating-point masks pass a gradient to
                the selector through the causal mask. The mask of the cross-attention passes none: without a dropped
                patch, the smoothing would multiply it by a million.
        """
        patches = features.shape[1]
        earlier = torch.ones(patches, patches, device=keep.device).tril()
        itself = torch.eye(patches, dtype=torch.bool, device=keep.device)
        kept = keep.float()
        causal = (earlier * kept[:, None].masked_fill(itself, 1.0))[:, None]
        dropped = (1 - kept.detach())[:, None, None]
        memory = self.ln_vision(features)
        x = features
        for block in self.blocks:
            x = block(x, memory, causal, dropped)
        return self.norm(x)


class MergerBlock(nn.Module):
    """Pre-norm block: masked self-attention, masked attention to the memory, MLP."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(config.width) for _ in range(3))
        self.token_causal_attn = MaskedAttention(config.width, config.merger_heads)
        self.token_cross_attn = MaskedCrossAttention(config.width, config.merger_heads)
        self.mlp = MLP(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor, causal: Tensor, dropped: Tensor) -> Tensor:
        x = x + self.token_causal_attn(self.norm0(x), causal)
        x = x + self.token_cross_attn(self.norm1(x), memory, dropped)
        return x + self.mlp(self.norm2(x))


class MaskedAttention(Attention):
    """Self-attention with the smoothed softmax."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.proj(merge_heads(smoothed_attention(*self.heads(x), mask)))


class MaskedCrossAttention(CrossAttention):
    """Cross-attention with the smoothed softmax."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.proj(merge_heads(smoothed_attention(*self.heads(x, memory), mask)))


def smoothed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Computes attention with a smoothed softmax, which averages all values where the mask hides every column.

    With e = 1e-6 and N tokens, a = (exp(s - max s) m + e / N) / (sum of exp(s - max s) m + e), in float32. The maximum
    is over all columns, masked ones too.

    Args:
        query: Queries, [batch, heads, tokens, channels].
        key: Keys, of the same shape.
        value: Values, of the same shape.
        mask: Zeros and ones, broadcast to [batch, heads, tokens, tokens]; 1 is visible.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.float()
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * mask
    weights = (weights + SOFTMAX_EPS / weights.shape[-1]) / (weights.sum(-1, keepdim=True) + SOFTMAX_EPS)
    return weights.to(value.dtype) @ value


def gumbel_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draws standard Gumbel noise, float32, on the generator's device."""
    exponential = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -exponential.log()


def keep_with_noise(log_probs: Tensor, noise: Tensor) -> Tensor:
    """Returns the published decision, the likelier class after adding Gumbel noise: bool [batch, patches]."""
    noisy = log_probs + noise
    return noisy[..., KEEP] >= noisy[..., 1 - KEEP]
