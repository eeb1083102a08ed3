"""Visual tokenizer: images to codes, or to continuous features."""

from .config import VisualTokenizerConfig
from .network import VisualTokenizer, gumbel_noise, keep_with_noise
from .preprocessing import normalize_images, resize_image

__all__ = [
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "gumbel_noise",
    "keep_with_noise",
    "normalize_images",
    "resize_image",
]
