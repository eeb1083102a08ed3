"""Preprocessing of pictures for the ViT (docs/model.md, section 2.1)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videolavit.media.resize import resize_picture

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def resize_image(image: NDArray[np.uint8], size: int = 224) -> NDArray[np.uint8]:
    """Resizes a uint8 picture bicubically to a square. As published, the aspect ratio is not kept."""
    return resize_picture(image, size, size)


def normalize_images(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Normalizes uint8 pictures [batch, height, width, 3] by CLIP's statistics to float32 [batch, 3, height, width]."""
    pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std
