"""What is asked for: texts and pictures in order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videolavit.models.visual_tokenizer import VisualTokenizer, normalize_images, resize_image
from videolavit.vocabulary import Vocabulary

Picture = NDArray[np.uint8]
"""uint8 [height, width, 3] RGB."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request.

    Args:
        parts: Texts and pictures in order.
        seed: Decides all that is drawn for this prompt.

    Raises:
        ValueError: nothing is asked for.
    """

    parts: tuple[str | Picture, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not any(not isinstance(part, str) or part.strip() for part in self.parts):
            raise ValueError("the prompt is empty; give a text or a picture")

    @property
    def text(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if not isinstance(part, str)]


def prompt_ids(
    prompt: Prompt,
    pictures: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    markers: bool = True,
) -> list[int]:
    """Token ids of a prompt, without a beginning-of-sequence id, as published (reference 5.2).

    Args:
        pictures: Codes of the prompt's pictures.
        markers: Whether pictures are wrapped in [IMG] and [/IMG]; in prompts for a picture they are not.
    """
    codes = iter(pictures)
    ids: list[int] = []
    for part in prompt.parts:
        if isinstance(part, str):
            ids += tokenizer(part, add_special_tokens=False).input_ids
        else:
            wrapped = vocabulary.image(next(codes))
            ids += wrapped if markers else wrapped[1:-1]
    return ids


def read_pictures(pictures: Sequence[Picture], tokenizer: VisualTokenizer) -> Tensor:
    """Pictures of any size as the tokenizer's input [n, 3, size, size], on its device and in its dtype."""
    size = tokenizer.config.image_size
    weight = tokenizer.quantize.embedding.weight
    images = normalize_images(np.stack([resize_image(picture, size) for picture in pictures]))
    return images.to(weight.device, weight.dtype)


def encode_pictures(pictures: Sequence[Picture], tokenizer: VisualTokenizer) -> list[list[int]]:
    """Visual codes of pictures of any size."""
    if not pictures:
        return []
    with torch.inference_mode():
        return [codes.tolist() for codes in tokenizer.encode(read_pictures(pictures, tokenizer))]
