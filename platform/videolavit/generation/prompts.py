"""Prompts of texts and pictures, and their token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videolavit.media import Clip
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.visual_tokenizer import VisualTokenizer, normalize_images, resize_image
from videolavit.vocabulary import Vocabulary

Picture = NDArray[np.uint8]
"""RGB picture, uint8 [height, width, 3]."""

EncodedPart = str | Sequence[int]
"""Text of a prompt, or the visual codes of a picture."""

PICTURE_MARKER = "<image>"
"""Place of a picture in the text of a prompt."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """Prompt for a picture or a video.

    Args:
        parts: Texts and pictures, in order.
        seed: Seed of all random numbers of this prompt.

    Raises:
        ValueError: the prompt has neither a picture nor a text that is not blank.
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


def parse_prompt(text: str, pictures: Sequence[Picture] = (), seed: int = 0) -> Prompt:
    """Makes a prompt from a text in which each `<image>` stands for a picture.

    Args:
        text: Text; without a marker it follows the pictures.
        pictures: Pictures of the markers, in order.
        seed: Seed of all random numbers of this prompt.

    Raises:
        ValueError: the numbers of markers and pictures differ, or the prompt is empty.
    """
    texts = text.split(PICTURE_MARKER)
    if len(texts) == 1:
        return Prompt((*pictures, *([text] if text else [])), seed)
    if len(texts) - 1 != len(pictures):
        raise ValueError(f"the prompt has {len(texts) - 1} {PICTURE_MARKER} markers for {len(pictures)} pictures")
    parts: list[str | Picture] = [texts[0]]
    for picture, following in zip(pictures, texts[1:], strict=True):
        parts += [picture, following]
    return Prompt(tuple(part for part in parts if not isinstance(part, str) or part), seed)


def prompt_ids(
    prompt: Sequence[EncodedPart],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    markers: bool = True,
) -> list[int]:
    """Token ids of a prompt, without a beginning-of-sequence id, as published (docs/model.md, section 5.2).

    Args:
        prompt: Texts and visual codes, in order.
        markers: True if pictures are wrapped in [IMG] and [/IMG]. Prompts for a picture have none.
    """
    ids: list[int] = []
    for part in prompt:
        if isinstance(part, str):
            ids += tokenizer(part, add_special_tokens=False).input_ids
        else:
            wrapped = vocabulary.image(part)
            ids += wrapped if markers else wrapped[1:-1]
    return ids


def preprocess_pictures(pictures: Sequence[Picture], tokenizer: VisualTokenizer) -> Tensor:
    """Resizes and normalizes pictures to the tokenizer's input [n, 3, size, size], on its device and in its dtype."""
    size = tokenizer.config.image_size
    weight = tokenizer.quantize.embedding.weight
    images = normalize_images(np.stack([resize_image(picture, size) for picture in pictures]))
    return images.to(weight.device, weight.dtype)


def encode_pictures(pictures: Sequence[Picture], tokenizer: VisualTokenizer) -> list[list[int]]:
    """Visual codes of pictures of any size."""
    if not pictures:
        return []
    with torch.inference_mode():
        return [codes.tolist() for codes in tokenizer.encode(preprocess_pictures(pictures, tokenizer))]


def encode_motion(clips: Sequence[Clip], tokenizer: MotionTokenizer) -> list[list[int]]:
    """Motion codes of clips."""
    weight = next(tokenizer.parameters())
    features = torch.from_numpy(np.stack([clip.features(tokenizer.config.grid) for clip in clips]))
    with torch.inference_mode():
        codes: list[list[int]] = tokenizer.encode(features.to(weight.device, weight.dtype)).tolist()
    return codes
