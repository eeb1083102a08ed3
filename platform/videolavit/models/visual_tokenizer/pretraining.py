"""Training of the vision transformer on captions, where no pretrained one is at hand.

The published tokenizer has the transformer of EVA-CLIP, which learned from pictures and their captions. Here it learns
to name the words of the caption, as in SuperClass (Huang et al., NeurIPS 2024, arXiv 2411.03313), so that features tell
what is in the picture; and to keep the pixels of each patch, so that pictures can be made from them.
"""

import re
import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import init_weights
from ..objective import SAMPLE_LOSSES, Draws, Objective, sample_losses
from .network import VisualTokenizer
from .preprocessing import normalize_images

WORD = re.compile(r"\w+")


class VisionTransformerObjective(Objective):
    """Words of captions and pixels of patches, both from the features of patches.

    Inputs: `images` uint8 [batch, image_size, image_size, 3] and `words` bool [batch, buckets] from `word_buckets`, all
    False for a picture without a caption. Terms, summed over images: `words`, the cross entropy of the caption's words,
    each as likely as the others, over the pictures with a caption; and `pixels`, the mean squared error of normalized
    pixels.

    Args:
        tokenizer: Visual tokenizer; only its vision transformer is trained.
        buckets: Number of words that are told apart.
        pixel_weight: Weight of the term `pixels`.
    """

    def __init__(self, tokenizer: VisualTokenizer, buckets: int, pixel_weight: float) -> None:
        super().__init__()
        config = tokenizer.config
        self.tokenizer = tokenizer.requires_grad_(False).train()
        encoder = self.tokenizer.encoder.requires_grad_(True)
        encoder.pos_embed.requires_grad_(False)
        encoder.head.requires_grad_(False)
        self.word_head = nn.Linear(config.width, buckets)
        self.pixel_head = nn.Linear(config.width, 3 * config.patch_size**2)
        self.word_head.apply(init_weights)
        self.pixel_head.apply(init_weights)
        self.weights = {"words": 1.0, "pixels": pixel_weight}

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        images = normalize_images(inputs["images"])
        words, pixels = self.predict(images)
        present = inputs["words"].float()
        counts = present.sum(1)
        entropy = -(words.log_softmax(-1) * present).sum(1) / counts.clamp(min=1)
        error = (pixels - self.patches(images)).square().mean((1, 2))
        means = {"words": entropy * (counts > 0), "pixels": error}
        return {name: mean.sum() for name, mean in means.items()} | {SAMPLE_LOSSES: sample_losses(means, self.weights)}

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts the words, logits [batch, buckets], and pixels [batch, patches, 3 x patch_size^2] of images."""
        features = self.tokenizer.encoder.norm(self.tokenizer.patch_features(images)).float()
        return self.word_head(features.mean(1)), self.pixel_head(features)

    def patches(self, images: Tensor) -> Tensor:
        """Pixels of each patch, [batch, patches, 3 x patch_size^2]."""
        side = self.tokenizer.config.patch_size
        return F.unfold(images, side, stride=side).transpose(1, 2)

    def parts(self) -> dict[str, nn.Module]:
        return {"visual_tokenizer": self.tokenizer}

    def units(self) -> list[nn.Module]:
        return list(self.tokenizer.encoder.blocks)

    def fixed(self) -> list[nn.Module]:
        return [module for name, module in self.tokenizer.named_children() if name != "encoder"]


def word_buckets(text: str | None, buckets: int) -> Tensor:
    """Marks the words of a caption, bool [buckets], each in the bucket that its CRC-32 gives."""
    marks = torch.zeros(buckets, dtype=torch.bool)
    for word in WORD.findall((text or "").lower()):
        marks[zlib.crc32(word.encode()) % buckets] = True
    return marks
