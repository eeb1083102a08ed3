"""Trains codes -> picture: the conditions decoder, and the diffusion of the keyframe U-Net."""

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

from ..cached import CachedSource, Tensors
from ..component import Component
from ..data import DataError, Item, SampleSource
from ..inputs import Inputs
from ..loader import usable
from ..sources import MappedSource, data_facts, picture_sources, sample_stream, validation_items

PART = "keyframe_detokenizer"
FIXED = ("visual_tokenizer", f"{PART}/vae")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Training of the keyframe detokenizer. Published are the order of the stages, the cosine distance and the
    prediction of noise; the U-Net started from Stable Diffusion's.

    Args:
        height: Of the pictures in pixels; None for the model's own.
        width: As the height.
        condition_steps: Steps in which only the conditions decoder learns, to reconstruct ViT features. 0 where the
            visual tokenizer's training has trained it already.
        feature_weight: Of the features' cosine distance beside the diffusion. Not published; it keeps the decoder a
            decoder of features while the diffusion trains it too.
        drop_conditions: Share of the samples without conditions, which guidance compares with. Not published; 0.1 is
            what Stable Diffusion was trained with.
        cache: Local folder that keeps what the frozen networks make of each picture (codes, features, latents): the
            first epoch fills it, later ones read it. None computes it in every step.
        validation_samples: Held-out samples whose loss is measured.
        show_samples: Of these, the first that are reconstructed to look at.
        show_steps: Denoising steps for them.
        show_guidance: Guidance for them.
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
    show_guidance: float = 3.0


def build(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    """The component. Raises DataError and ModelError."""
    tokenizer, vae = model.load("visual_tokenizer"), model.load(f"{PART}/vae")
    conditions, unet, scheduler = (model.load(f"{PART}/{part}") for part in ("conditions", "unet", "scheduler"))
    detokenizer = KeyframeDetokenizer(conditions, unet, vae, scheduler)
    height, width = settings.height or model.sizes.keyframe_height, settings.width or model.sizes.keyframe_width
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
        condition_steps=settings.condition_steps,
        feature_weight=settings.feature_weight,
        drop_conditions=settings.drop_conditions,
    )

    def prepared(source: SampleSource) -> SampleSource:
        resized = MappedSource(source, lambda picture: _resized(picture, side, (height, width)))
        if settings.cache is None:
            return resized
        identity = {name: model.digest(name) for name in ("visual_tokenizer", f"{PART}/vae")} | {
            "size": [height, width]
        }
        folder = Folder(settings.cache, inputs.storage)
        return CachedSource(resized, lambda sizes: _first(targets(**_batched([sizes]))), folder, identity)

    train = [prepared(source) for source in picture_sources(inputs.train, inputs.storage)]
    pictures = picture_sources(inputs.validation, inputs.storage)
    shown = validation_items(pictures, settings.validation_samples)[: settings.show_samples]

    def show(objective: Objective, folder: Path) -> dict[str, float]:
        batch = _batched([_resized(picture, side, (height, width)) for _, picture in usable(shown)])
        generators = [generator_of(inputs.seed, "show", number) for number in range(len(batch["images"]))]
        codes = targets.codes(batch["images"])
        ours = detokenizer.paint(codes, (height, width), settings.show_steps, settings.show_guidance, generators)
        return _compared(batch["pictures"].numpy(), ours, folder)

    return Component(
        objective=objective,
        stream=sample_stream(train, inputs),
        collate=_collate,
        validation=validation_items([prepared(source) for source in pictures], settings.validation_samples),
        show=show if shown else None,
        facts=data_facts(train) | {"size": [height, width], "fixed": {part: model.digest(part) for part in FIXED}},
    )


def _resized(picture: NDArray[np.uint8], side: int, size: tuple[int, int]) -> Tensors:
    """A picture as the tokenizer reads it, and as it is to come out."""
    images, pictures = resize_picture(picture, side, side), resize_picture(picture, *size)
    return {"images": torch.from_numpy(images), "pictures": torch.from_numpy(pictures)}


def _compared(theirs: NDArray[np.uint8], ours: NDArray[np.uint8], folder: Path) -> dict[str, float]:
    """Writes pictures side by side; returns how close they are."""
    for number, (left, right) in enumerate(zip(theirs, ours, strict=True)):
        save_picture(side_by_side(left, right), folder / f"{number:02d}.png", {})
    return {"psnr": float(np.mean([psnr(left, right) for left, right in zip(theirs, ours, strict=True)]))}


def _collate(items: Sequence[Item], samples: Sequence[Tensors]) -> Batch:
    counts = {"features": float(len(items)), "diffusion": float(len(items))}
    return Batch(_batched(samples), counts, [item.position for item in items])


def _batched(samples: Sequence[Tensors]) -> Tensors:
    batch = {name: torch.stack([one[name] for one in samples]) for name in samples[0] if name != "codes"}
    if "codes" in samples[0]:
        batch["codes"] = pad_sequence([one["codes"] for one in samples], batch_first=True, padding_value=PAD)
    return batch


def _first(batch: Tensors) -> Tensors:
    return {name: value[0] for name, value in batch.items()}
