"""Training of the keyframe detokenizer, from codes to a picture: the conditions decoder and the diffusion U-Net."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch.nn.utils.rnn import pad_sequence

from videolavit.generation.output import save_picture, side_by_side
from videolavit.media.quality import psnr
from videolavit.media.resize import resize_picture
from videolavit.models.folder import ModelFolder
from videolavit.models.keyframe_detokenizer import KeyframeDetokenizer
from videolavit.models.keyframe_detokenizer.objective import PAD, KeyframeObjective, PictureTargets
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective, generator_of
from videolavit.models.sampling import check_size
from videolavit.records.storage import Folder

from ..component import Component
from ..data import DataError, Item, SampleSource
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import (
    CachedSource,
    MappedSource,
    Tensors,
    data_identity,
    picture_sources,
    sample_stream,
    validation_items,
)

KEYFRAME_DETOKENIZER = "keyframe_detokenizer"
FIXED_PARTS = ("visual_tokenizer", f"{KEYFRAME_DETOKENIZER}/vae")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyframeDetokenizerTraining:
    """Training of the keyframe detokenizer. Published are the order of the stages, the cosine distance of features, and
    that the U-Net predicts noise and starts from Stable Diffusion's weights.

    Args:
        height: Height of the pictures, in pixels; None for the model's own.
        width: Width of the pictures, in pixels; None for the model's own.
        condition_steps: Steps in which only the conditions decoder learns, to reconstruct ViT features; 0 where the
            training of the visual tokenizer has trained it.
        feature_weight: Weight of the cosine distance of features beside the diffusion loss. It keeps the decoder a
            decoder of features while the diffusion trains it too. Not published.
        drop_conditions: Share of the samples without conditions, for classifier-free guidance. Not published; Stable
            Diffusion was trained with 0.1.
        cache: Folder that stores the outputs of the frozen networks (codes, features, latents) for each picture. The
            first epoch fills it, later ones read it. None computes them in every step.
        validation_samples: Held-out pictures of the validation loss.
        show_samples: Number of the held-out pictures that are reconstructed in `samples/`.
        show_steps: Denoising steps of these reconstructions.
        show_guidance: Guidance scale of these reconstructions.
    """

    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    condition_steps: int = Field(default=0, ge=0)
    feature_weight: float = Field(default=1.0, ge=0)
    drop_conditions: float = Field(default=0.1, ge=0, lt=1)
    cache: str | None = None
    validation_samples: int = Field(default=64, ge=1)
    show_samples: int = Field(default=8, ge=0)
    show_steps: int = Field(default=50, ge=1)
    show_guidance: float = Field(default=3.0, ge=0)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        tokenizer, vae = model.load("visual_tokenizer"), model.load(f"{KEYFRAME_DETOKENIZER}/vae")
        conditions, unet, scheduler = (
            model.load(f"{KEYFRAME_DETOKENIZER}/{part}") for part in ("conditions", "unet", "scheduler")
        )
        detokenizer = KeyframeDetokenizer(conditions, unet, vae, scheduler)
        height, width = self.height or model.sizes.keyframe_height, self.width or model.sizes.keyframe_width
        try:
            check_size(height, width, detokenizer.pixel_multiple)
        except ValueError as error:
            raise DataError(f"{error}; set objective.width and objective.height") from None
        targets = PictureTargets(tokenizer, vae)
        side = tokenizer.config.image_size
        objective = KeyframeObjective(
            targets,
            conditions,
            unet,
            scheduler,
            pixels_per_latent=1 << (len(vae.config.block_out_channels) - 1),
            condition_steps=self.condition_steps,
            feature_weight=self.feature_weight,
            drop_conditions=self.drop_conditions,
        )

        def encoded(source: SampleSource) -> SampleSource:
            resized = MappedSource(source, lambda picture: _resized(picture, side, (height, width)))
            if self.cache is None:
                return resized
            identity = {name: model.digest(name) for name in ("visual_tokenizer", f"{KEYFRAME_DETOKENIZER}/vae")} | {
                "size": [height, width]
            }

            def encode(picture: Tensors) -> Tensors:
                return {name: value[0] for name, value in targets(**_batched([picture])).items()}

            folder = Folder(self.cache, inputs.storage)
            return CachedSource(resized, encode, folder, identity)

        train = [encoded(source) for source in picture_sources(inputs.train, inputs.storage)]
        pictures = picture_sources(inputs.validation, inputs.storage)
        shown = validation_items(pictures, self.validation_samples)[: self.show_samples]

        def write_samples(objective: Objective, folder: Path) -> dict[str, float]:
            batch = _batched([_resized(picture, side, (height, width)) for _, picture in load_items(shown)])
            generators = [generator_of(inputs.seed, "show", number) for number in range(len(batch["images"]))]
            codes = targets.codes(batch["images"])
            ours = detokenizer.generate(codes, (height, width), self.show_steps, self.show_guidance, generators)
            values = []
            for number, (left, right) in enumerate(zip(batch["pictures"].numpy(), ours, strict=True)):
                save_picture(side_by_side(left, right), folder / f"{number:02d}.png", {})
                values.append(psnr(left, right))
            return {"psnr": float(np.mean(values))}

        return Component(
            objective=objective,
            stream=sample_stream(train, inputs),
            collate=_collate,
            validation=validation_items([encoded(source) for source in pictures], self.validation_samples),
            write_samples=write_samples if shown else None,
            identity=data_identity(train)
            | {"size": [height, width], "fixed": {part: model.digest(part) for part in FIXED_PARTS}},
        )


def _resized(picture: NDArray[np.uint8], side: int, size: tuple[int, int]) -> Tensors:
    """A picture at the size of the tokenizer's input, and at that of the detokenizer's output."""
    images, pictures = resize_picture(picture, side, side), resize_picture(picture, *size)
    return {"images": torch.from_numpy(images), "pictures": torch.from_numpy(pictures)}


def _collate(items: Sequence[Item], samples: Sequence[Tensors]) -> Batch:
    counts = {"features": float(len(items)), "diffusion": float(len(items))}
    return Batch(_batched(samples), counts, [item.position for item in items])


def _batched(samples: Sequence[Tensors]) -> Tensors:
    batch = {name: torch.stack([one[name] for one in samples]) for name in samples[0] if name != "codes"}
    if "codes" in samples[0]:
        batch["codes"] = pad_sequence([one["codes"] for one in samples], batch_first=True, padding_value=PAD)
    return batch
