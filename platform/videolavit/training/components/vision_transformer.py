"""Training of the visual tokenizer's vision transformer on captioned pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.models.folder import ModelFolder
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective
from videolavit.models.visual_tokenizer import normalize_images
from videolavit.models.visual_tokenizer.pretraining import VisionTransformerObjective, word_buckets
from videolavit.records.foreign import read_keyframe

from ..component import Component
from ..data import Item, SampleSource
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import ClipSample, MappedSource, clip_sources, data_identity, sample_stream, validation_items

CaptionedPicture = tuple[NDArray[np.uint8], str | None]
"""Picture [image_size, image_size, 3] and its caption."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VisionTransformerTraining:
    """Training of the vision transformer, whose features the visual tokenizer quantizes.

    Nothing of it is published: Video-LaVIT took the trained transformer of EVA-CLIP.

    Args:
        words: Number of words that are told apart; rarer ones share places with others.
        pixel_weight: Weight of the squared error of pixels, beside the cross entropy of the caption's words.
        validation_samples: Held-out keyframes of the validation loss.
    """

    words: int = Field(default=8192, ge=1)
    pixel_weight: float = Field(default=1.0, ge=0)
    validation_samples: int = Field(default=256, ge=1)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        tokenizer = model.load("visual_tokenizer")
        side = tokenizer.config.image_size

        def load(clip: ClipSample) -> CaptionedPicture:
            return read_keyframe(clip.keyframe, (side, side)), clip.text

        def sources(urls: list[str]) -> list[SampleSource]:
            return [MappedSource(source, load) for source in clip_sources(urls, inputs.storage)]

        def collate(items: Sequence[Item], samples: Sequence[CaptionedPicture]) -> Batch:
            images = torch.from_numpy(np.stack([picture for picture, _ in samples]))
            words = torch.stack([word_buckets(text, self.words) for _, text in samples])
            counts = {"words": float(words.any(1).sum()), "pixels": float(len(items))}
            return Batch({"images": images, "words": words}, counts, [item.position for item in items])

        train = sources(inputs.train)
        validation = validation_items(sources(inputs.validation), self.validation_samples)

        def evaluate(objective: Objective, folder: Path) -> dict[str, float]:
            assert isinstance(objective, VisionTransformerObjective)
            return _evaluate(objective, collate(validation, [sample for _, sample in load_items(validation)]))

        return Component(
            objective=VisionTransformerObjective(tokenizer, self.words, self.pixel_weight),
            stream=sample_stream(train, inputs),
            collate=collate,
            validation=validation,
            write_samples=evaluate if validation else None,
            identity=data_identity(train) | {"words": self.words, "image_size": side},
        )


@torch.no_grad()
def _evaluate(objective: VisionTransformerObjective, batch: Batch) -> dict[str, float]:
    """Share of the captions' words among as many words that are thought likeliest, and how well pixels are kept."""
    device = next(objective.parameters()).device
    found, named, theirs, ours = 0, 0, [], []
    for images, words in zip(batch.inputs["images"].split(32), batch.inputs["words"].split(32), strict=True):
        normalized = normalize_images(images.to(device))
        logits, pixels = objective.predict(normalized)
        for row, present in zip(logits.cpu(), words, strict=True):
            likeliest = row.topk(int(present.sum())).indices
            found, named = found + int(present[likeliest].sum()), named + len(likeliest)
        theirs.append(objective.patches(normalized).float().cpu())
        ours.append(pixels.cpu())
    original = torch.cat(theirs)
    return {
        "words_found": found / max(named, 1),
        "explained_variance": float(1 - (torch.cat(ours) - original).square().mean() / original.var()),
    }
