"""Training of the visual tokenizer to reconstruct ViT features from few patches (docs/model.md, section 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codebook import CodebookLearner, CodebookObjective, CodebookSettings
from ..objective import Draws
from .network import KEEP, VisualTokenizer
from .preprocessing import normalize_images

if TYPE_CHECKING:
    from ..keyframe_detokenizer import ConditionDecoder


class VisualTokenizerObjective(CodebookObjective):
    """Cosine distance of reconstructed to original patch features, and how many patches are kept.

    First the selector, the merger and the decoder learn without quantizing, then everything learns with it; the ViT
    stays as it is. Patches are chosen with Gumbel noise and the gradient passes straight through: to the masks of the
    merger, and to the vectors of the kept patches, which are all that the decoder sees. The noise fades during the
    first stage. With all of it to the end, as published, a selector may say of every patch that it is kept with
    probability `rho`, and the tokenizer, which keeps what is likely kept, would then keep none.

    Inputs: `images` uint8 [batch, image_size, image_size, 3]. Terms, each summed over images: `reconstruction` (mean
    cosine distance of its patches), `keep_rate` (squared difference of its share of kept patches to `rho`) and
    `commitment` (mean over its kept patches); `kept`, its share of kept patches, is told only.

    Args:
        tokenizer: What is trained, but for its ViT.
        decoder: Reconstructs the features: the part of the keyframe detokenizer that does. Its projections to the
            U-Net's conditions are not trained here.
        codebook: How the codebook is learned.
        rho: Share of patches to keep.
        keep_weight: Weight of that term.
        commitment: Weight of that term.
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
        self.weights = {"reconstruction": 1.0, "keep_rate": keep_weight, "commitment": commitment}

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.tokenizer.patch_features(normalize_images(inputs["images"]))
        keep = self._keep(features, draws)
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
        return {
            "reconstruction": distance.sum(),
            "keep_rate": (share - self.rho).square().sum(),
            "commitment": (commitment.sum(1) / kept.sum(1).clamp(min=1)).sum(),
            "kept": share.detach().sum(),
        }

    def _keep(self, features: Tensor, draws: Draws) -> Tensor:
        """Zeros and ones [batch, patches], float32, with a gradient to the selector."""
        log_probs = self.tokenizer.keep_log_probs(features).float()
        noisy = log_probs + self.codebook.before_quantizing() * draws.gumbel("selector", *log_probs.shape[1:])
        likely = noisy.softmax(-1)[..., KEEP]
        chosen = (noisy[..., KEEP] > noisy[..., 1 - KEEP]).float()
        return chosen + (likely - likely.detach())

    def parts(self) -> dict[str, nn.Module]:
        return {"visual_tokenizer": self.tokenizer, "keyframe_detokenizer/conditions": self.decoder}

    def units(self) -> list[nn.Module]:
        return [*self.tokenizer.encoder.blocks, *self.tokenizer.causal_encoder.blocks, *self.decoder.blocks]

    def fixed(self) -> list[nn.Module]:
        return [self.tokenizer.encoder]


def feature_distance(rebuilt: Tensor, features: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine distance [batch] of features [batch, patches, width]: the mean of their patches', as published.

    Args:
        centre: [patches, width], the mean of each place's features. What differs from it is compared as one vector a
            picture, so that the patches which set a picture apart count most.
    """
    rebuilt, features = rebuilt.float(), features.float()
    if centre is None:
        return 1 - F.cosine_similarity(rebuilt, features, dim=-1).mean(1)
    return 1 - F.cosine_similarity((rebuilt - centre).flatten(1), (features - centre).flatten(1), dim=-1)
