"""Trains picture -> codes, and codes -> ViT features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from videolavit.media.resize import resize_picture
from videolavit.models.codebook import CodebookSettings, use_of_codes
from videolavit.models.folder import ModelFolder
from videolavit.models.keyframe_detokenizer import ConditionDecoder
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective
from videolavit.models.visual_tokenizer import VisualTokenizer, normalize_images
from videolavit.models.visual_tokenizer.objective import VisualTokenizerObjective, feature_distance

from ..component import Component
from ..data import Item, SampleSource, Stream
from ..inputs import Inputs
from ..loader import usable
from ..sources import MappedSource, data_facts, picture_sources, sample_stream, validation_items

CENTRED_OVER = 256
"""Pictures whose mean feature is taken."""

TERMS = ("reconstruction", "keep_rate", "commitment", "kept")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Training of the visual tokenizer, and of the decoder that the keyframe detokenizer begins with.

    Args:
        rho: Share of the patches to keep; a third as published.
        keep_weight: Weight of the term that holds a picture's share to `rho`; 2 as published.
        commitment: Weight of the distance of vectors to their codes. Not published; 0.25 is VQ-VAE's.
        centred: Compare what is left of a picture's features without the mean of each place, all patches together.
            Features of a ViT that is not trained look alike in all pictures, and what they have in common is nearly all
            that the cosine of a patch measures. Not published.
        codebook: How the codebook is learned; before it quantizes, selector and merger learn without it.
        validation_samples: Held-out pictures whose loss is measured.
    """

    rho: float = Field(default=1 / 3, gt=0, lt=1)
    keep_weight: float = Field(default=2.0, ge=0)
    commitment: float = Field(default=0.25, ge=0)
    centred: bool = False
    codebook: CodebookSettings = Field(default_factory=CodebookSettings)
    validation_samples: int = Field(default=256, ge=1)


def build(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    """The component. Raises DataError and ModelError."""
    tokenizer, decoder = model.load("visual_tokenizer"), model.load("keyframe_detokenizer/conditions")
    side = tokenizer.config.image_size

    def prepared(named: list[str]) -> list[SampleSource]:
        return [MappedSource(one, lambda picture: resize_picture(picture, side, side)) for one in _pictures(named)]

    def _pictures(named: list[str]) -> list[SampleSource]:
        return picture_sources(named, inputs.storage)

    train = prepared(inputs.train)
    validation = validation_items(prepared(inputs.validation), settings.validation_samples)
    stream = sample_stream(train, inputs)
    centre = _mean_features(tokenizer, stream) if settings.centred else None
    objective = VisualTokenizerObjective(
        tokenizer,
        decoder,
        settings.codebook,
        rho=settings.rho,
        keep_weight=settings.keep_weight,
        commitment=settings.commitment,
        centre=centre,
    )
    return Component(
        objective=objective,
        stream=stream,
        collate=_collate,
        validation=validation,
        show=_Show(tokenizer, decoder, centre, validation) if validation else None,
        facts=data_facts(train) | {"visual_tokenizer": model.digest("visual_tokenizer")},
    )


@torch.no_grad()
def _mean_features(tokenizer: VisualTokenizer, stream: Stream) -> Tensor:
    """[patches, width] over the first pictures of the stream, which is then where it was; the same at every start."""
    before = stream.state()
    pictures = torch.from_numpy(np.stack([picture for _, picture in usable(stream.take(CENTRED_OVER))]))
    stream.seek(before)
    return torch.cat([tokenizer.patch_features(normalize_images(part)) for part in pictures.split(32)]).mean(0)


def _collate(items: Sequence[Item], pictures: Sequence[NDArray[np.uint8]]) -> Batch:
    counts = dict.fromkeys(TERMS, float(len(items)))
    return Batch({"images": torch.from_numpy(np.stack(pictures))}, counts, [item.position for item in items])


class _Show:
    """How well features of held-out pictures come back, and how evenly the codes are used."""

    def __init__(
        self, tokenizer: VisualTokenizer, decoder: ConditionDecoder, centre: Tensor | None, items: Sequence[Item]
    ) -> None:
        self._tokenizer, self._decoder, self._centre, self._items = tokenizer, decoder, centre, items

    def __call__(self, objective: Objective, folder: Path) -> dict[str, float]:
        tokenizer, decoder = self._tokenizer, self._decoder
        device = next(tokenizer.parameters()).device
        decoder.codebook = tokenizer.quantize.embedding.weight.detach()
        uses = torch.zeros(tokenizer.config.num_codes)
        distances, tokens = [], []
        pictures = torch.from_numpy(np.stack([picture for _, picture in usable(self._items)]))
        for part in pictures.split(32):
            images = normalize_images(part.to(device))
            codes = tokenizer.encode(images)
            centre = None if self._centre is None else self._centre.to(device)
            distances.append(feature_distance(decoder.features(codes), tokenizer.patch_features(images), centre))
            tokens += [len(one) for one in codes]
            uses += torch.bincount(torch.cat(codes).cpu(), minlength=len(uses))
        return {
            "cosine_distance": float(torch.cat(distances).mean()),
            "tokens_a_picture": float(np.mean(tokens)),
            **{f"held_out_{name}": value for name, value in use_of_codes(uses).items()},
        }
