"""Training of the visual tokenizer to reconstruct ViT features from few patches (docs/model.md, section 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codebook import CodebookLearner, CodebookObjective, CodebookSettings
from ..objective import SAMPLE_LOSSES, Draws, sample_losses
from .network import KEEP, VisualTokenizer
from .preprocessing import normalize_images

if TYPE_CHECKING:
    from ..keyframe_detokenizer import ConditionDecoder


MARGIN = 1.0
"""Difference of log-probabilities from which on a patch is no longer in doubt."""


class VisualTokenizerObjective(CodebookObjective):
    """Cosine distance between reconstructed and original patch features, and the share of kept patches.

    Selector, merger and decoder are first trained without quantization, then everything but the ViT with it. Patches
    are chosen with Gumbel noise, and the gradient passes straight through to the masks of the merger and to the vectors
    of the kept patches, the decoder's only input. The noise fades during the first stage. With full noise to the end,
    as published, a selector can give every patch the probability `rho`; the tokenizer here, which keeps likely patches,
    would then keep none.

    Inputs: `images` uint8 [batch, image_size, image_size, 3]. Terms, summed over images: `reconstruction`, the mean
    cosine distance of the patches; `keep_rate`, the squared difference of the share of kept patches to `rho`; `doubt`,
    by how much the two log-probabilities of a patch differ less than by `MARGIN`; and `commitment`, the mean over the
    kept patches. `kept`, the share of kept patches, is only reported.

    Args:
        tokenizer: Network to train, except for its ViT.
        decoder: Condition decoder, which reconstructs the features. Its projections to the U-Net's conditions are not
            trained here.
        codebook: Settings of the codebook.
        rho: Share of patches to keep.
        keep_weight: Weight of the term `keep_rate`.
        doubt_weight: Weight of the term `doubt`. Where any patches serve as well as others, nothing else tells those of
            a picture apart: all of them would be kept, or none.
        commitment: Weight of the term `commitment`.
        centre: See `feature_distance`.
    """

    tokenizer: VisualTokenizer

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        decoder: ConditionDecoder,
        codebook: CodebookSettings,
        *,
        rho: float,
        keep_weight: float,
        doubt_weight: float = 0.0,
        commitment: float,
        centre: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("centre", centre, persistent=False)
        self.centre: Tensor | None
        self.tokenizer = tokenizer.requires_grad_(True).train()
        self.decoder = decoder.requires_grad_(True).train()
        untrained = (tokenizer.encoder, tokenizer.quantize, tokenizer.vit_proj)
        for part in (*untrained, decoder.unet_proj_1, decoder.unet_proj_2, decoder.unet_attnpool):
            if part is not None:
                part.requires_grad_(False)
        self.codebook = CodebookLearner(tokenizer.config.num_codes, tokenizer.config.code_dim, codebook)
        self.rho = rho
        self.weights = {
            "reconstruction": 1.0,
            "keep_rate": keep_weight,
            "doubt": doubt_weight,
            "commitment": commitment,
        }

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.tokenizer.patch_features(normalize_images(inputs["images"]))
        log_probs = self.tokenizer.keep_log_probs(features).float()
        keep = self._keep(log_probs, draws)
        kept = keep.bool()
        z = self.tokenizer.encode_task_layer(self.tokenizer.causal_encoder(features, keep))
        keys = draws.uniform("codebook", features.shape[1])
        codes, distances = self.codebook(self.tokenizer.quantize, z[kept], keys[kept])
        vectors = torch.zeros_like(z).masked_scatter(kept[..., None], codes) * keep[..., None]
        order = kept.int().argsort(dim=1, descending=True, stable=True)
        moved = vectors.gather(1, order[..., None].expand_as(vectors))
        rebuilt = self.decoder.reconstruct(moved, kept.gather(1, order))
        distance = feature_distance(rebuilt, features, self.centre)
        share = keep.mean(1)
        commitment = torch.zeros_like(keys).masked_scatter(kept, distances)
        means = {
            "reconstruction": distance,
            "keep_rate": (share - self.rho).square(),
            "doubt": (MARGIN - _margins(log_probs).abs()).relu().mean(1),
            "commitment": commitment.sum(1) / kept.sum(1).clamp(min=1),
            "kept": share.detach(),
        }
        return {name: mean.sum() for name, mean in means.items()} | {SAMPLE_LOSSES: sample_losses(means, self.weights)}

    def _keep(self, log_probs: Tensor, draws: Draws) -> Tensor:
        """Returns a mask of zeros and ones [batch, patches], float32, with a gradient to the selector."""
        noisy = log_probs + self.codebook.remaining_warmup() * draws.gumbel("selector", *log_probs.shape[1:])
        margins = _margins(noisy)
        # The gradient is on the scale of a picture's margins. That of the plain softmax vanishes where the selector is
        # sure, which would then keep all patches of some pictures and none of others for good.
        scale = margins.detach().square().mean(1, keepdim=True).sqrt().clamp(min=1.0)
        likely = (margins / scale).sigmoid()
        return (margins > 0).float() + (likely - likely.detach())

    def parts(self) -> dict[str, nn.Module]:
        return {"visual_tokenizer": self.tokenizer, "keyframe_detokenizer/conditions": self.decoder}

    def units(self) -> list[nn.Module]:
        return [*self.tokenizer.encoder.blocks, *self.tokenizer.causal_encoder.blocks, *self.decoder.blocks]

    def fixed(self) -> list[nn.Module]:
        return [self.tokenizer.encoder]


def _margins(log_probs: Tensor) -> Tensor:
    """By how much keeping is likelier than dropping each patch, [batch, patches]."""
    return log_probs[..., KEEP] - log_probs[..., 1 - KEEP]


LEAST_LENGTH, EPSILON = 0.2, 1e-8
"""Smallest length of a rebuilt difference to the mean, relative to the original's, and of the product of both."""


def feature_distance(rebuilt: Tensor, features: Tensor, centre: Tensor | None = None) -> Tensor:
    """Computes the cosine distance [batch] of features [batch, patches, width].

    Args:
        rebuilt: Reconstructed features.
        features: Original features.
        centre: Mean features of each place, [patches, width]. With it, differences to the mean are compared as one
            vector per picture, so that distinctive patches count most. None for the mean distance of patches, as
            published.
    """
    rebuilt, features = rebuilt.float(), features.float()
    if centre is None:
        return 1 - F.cosine_similarity(rebuilt, features, dim=-1).mean(1)
    ours, theirs = (rebuilt - centre).flatten(1), (features - centre).flatten(1)
    length = theirs.norm(dim=1)
    # near the mean the gradient of a cosine has no bound, and pictures of which nothing is kept are rebuilt as the mean
    divisor = torch.maximum(ours.norm(dim=1), LEAST_LENGTH * length) * length
    return 1 - (ours * theirs).sum(1) / divisor.clamp(min=EPSILON)
