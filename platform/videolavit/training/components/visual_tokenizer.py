"""Training of the visual tokenizer: pictures to codes, and codes to ViT features."""

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
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import MappedSource, data_identity, picture_sources, sample_stream, validation_items

CENTRE_SAMPLES = 256
"""Pictures over which the mean features are computed."""

TERMS = ("reconstruction", "keep_rate", "doubt", "commitment", "kept")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VisualTokenizerTraining:
    """Training of the visual tokenizer, and of the conditions decoder that the keyframe detokenizer starts from.

    Args:
        rho: Share of the patches to keep. Published: one third.
        keep_weight: Weight of the loss term that holds a picture's share of kept patches to `rho`. Published: 2.
        doubt_weight: Weight of the loss term that holds a patch's log-probabilities of being kept and dropped apart,
            without which the selector may keep all patches of a picture, or none, where features of a trained ViT tell
            much of the whole picture. Not published.
        commitment: Weight of the distance of vectors to their codes. Not published; VQ-VAE's value is 0.25.
        centred: Subtracts the mean features of each patch position before the cosine distance, which is then taken
            over all patches of a picture. Features of an untrained ViT differ little between pictures, so that the
            cosine distance of a patch would measure little else than their mean. Not published.
        codebook: Learning of the codebook. Until it quantizes, selector and merger learn without it.
        validation_samples: Held-out pictures of the validation loss.
    """

    rho: float = Field(default=1 / 3, gt=0, lt=1)
    keep_weight: float = Field(default=2.0, ge=0)
    doubt_weight: float = Field(default=0.0, ge=0)
    commitment: float = Field(default=0.25, ge=0)
    centred: bool = False
    codebook: CodebookSettings = Field(default_factory=CodebookSettings)
    validation_samples: int = Field(default=256, ge=1)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        tokenizer, decoder = model.load("visual_tokenizer"), model.load("keyframe_detokenizer/conditions")
        side = tokenizer.config.image_size

        def sources(urls: list[str]) -> list[SampleSource]:
            pictures = picture_sources(urls, inputs.storage)
            return [MappedSource(source, lambda picture: resize_picture(picture, side, side)) for source in pictures]

        train = sources(inputs.train)
        validation = validation_items(sources(inputs.validation), self.validation_samples)
        stream = sample_stream(train, inputs)
        centre = _mean_features(tokenizer, stream) if self.centred else None
        objective = VisualTokenizerObjective(
            tokenizer,
            decoder,
            self.codebook,
            rho=self.rho,
            keep_weight=self.keep_weight,
            doubt_weight=self.doubt_weight,
            commitment=self.commitment,
            centre=centre,
        )

        def evaluate(objective: Objective, folder: Path) -> dict[str, float]:
            return _evaluate(tokenizer, decoder, centre, validation)

        return Component(
            objective=objective,
            stream=stream,
            collate=_collate,
            validation=validation,
            write_samples=evaluate if validation else None,
            identity=data_identity(train) | {"visual_tokenizer": model.digest("visual_tokenizer")},
        )


@torch.no_grad()
def _mean_features(tokenizer: VisualTokenizer, stream: Stream) -> Tensor:
    """Mean features [patches, width] of the first pictures of the stream, whose state stays."""
    before = stream.state()
    pictures = torch.from_numpy(np.stack([picture for _, picture in load_items(stream.take(CENTRE_SAMPLES))]))
    stream.seek(before)
    return torch.cat([tokenizer.patch_features(normalize_images(part)) for part in pictures.split(32)]).mean(0)


def _collate(items: Sequence[Item], pictures: Sequence[NDArray[np.uint8]]) -> Batch:
    counts = dict.fromkeys(TERMS, float(len(items)))
    return Batch({"images": torch.from_numpy(np.stack(pictures))}, counts, [item.position for item in items])


@torch.no_grad()
def _evaluate(
    tokenizer: VisualTokenizer, decoder: ConditionDecoder, centre: Tensor | None, items: Sequence[Item]
) -> dict[str, float]:
    """Reconstruction of the features of held-out pictures, and how evenly the codes are used."""
    device = next(tokenizer.parameters()).device
    centre = None if centre is None else centre.to(device)
    decoder.codebook = tokenizer.quantize.embedding.weight.detach()
    uses = torch.zeros(tokenizer.config.num_codes)
    distances, tokens = [], []
    pictures = torch.from_numpy(np.stack([picture for _, picture in load_items(items)]))
    for part in pictures.split(32):
        images = normalize_images(part.to(device))
        codes = tokenizer.encode(images)
        distances.append(feature_distance(decoder.features(codes), tokenizer.patch_features(images), centre))
        tokens += [len(ids) for ids in codes]
        uses += torch.bincount(torch.cat(codes).cpu(), minlength=len(uses))
    return {
        "cosine_distance": float(torch.cat(distances).mean()),
        "tokens_a_picture": float(np.mean(tokens)),
        **{f"held_out_{name}": value for name, value in use_of_codes(uses).items()},
    }
