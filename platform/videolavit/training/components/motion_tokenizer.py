"""Trains motion -> codes -> motion."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from videolavit.media import motion_features
from videolavit.media.quality import explained_variance
from videolavit.models.codebook import CodebookSettings, use_of_codes
from videolavit.models.folder import ModelFolder
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.motion_tokenizer.objective import MotionTokenizerObjective
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective

from ..component import Component
from ..data import Item, SampleSource
from ..inputs import Inputs
from ..loader import usable
from ..sources import ClipSample, MappedSource, clip_sources, data_facts, sample_stream, validation_items

Sample = tuple[Tensor, int]
"""Motion [2, time, height, width] at tokenizer scale, and its real frames."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Training of the motion tokenizer.

    Args:
        commitment: Weight of the encoder's distance to its codes. Not published; 0.25 is VQ-VAE's.
        codebook: How the codebook is learned.
        validation_samples: Held-out clips whose loss is measured.
    """

    commitment: float = Field(default=0.25, ge=0)
    codebook: CodebookSettings = Field(default_factory=CodebookSettings)
    validation_samples: int = Field(default=256, ge=1)


def build(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    """The component. Raises DataError and ModelError."""
    tokenizer: MotionTokenizer = model.load("motion_tokenizer")
    config = tokenizer.config
    size = (config.grid_height, config.grid_width)

    def prepared(named: list[str]) -> list[SampleSource]:
        return [
            MappedSource(source, lambda clip: _sample(clip, size)) for source in clip_sources(named, inputs.storage)
        ]

    def collate(items: Sequence[Item], samples: Sequence[Sample]) -> Batch:
        frames = torch.tensor([frames for _, frames in samples])
        counts = {"reconstruction": float(frames.sum()) * 2 * size[0] * size[1]}
        counts["commitment"] = float(len(items) * config.num_tokens)
        motion = torch.stack([motion for motion, _ in samples])
        return Batch({"motion": motion, "num_frames": frames}, counts, [item.position for item in items])

    train = prepared(inputs.train)
    validation = validation_items(prepared(inputs.validation), settings.validation_samples)
    objective = MotionTokenizerObjective(tokenizer, settings.codebook, settings.commitment)
    return Component(
        objective=objective,
        stream=sample_stream(train, inputs),
        collate=collate,
        validation=validation,
        show=_Show(tokenizer, validation) if validation else None,
        facts=data_facts(train) | {"tokenizer": [*size, config.num_codes]},
    )


class _Show:
    """How well held-out motion comes back, and how evenly its codes are used."""

    def __init__(self, tokenizer: MotionTokenizer, items: Sequence[Item]) -> None:
        self._tokenizer, self._items = tokenizer, items

    def __call__(self, objective: Objective, folder: Path) -> dict[str, float]:
        device = next(self._tokenizer.parameters()).device
        motion = torch.stack([sample[0] for _, sample in usable(self._items)])
        ids = torch.cat([self._tokenizer.encode(part.to(device)) for part in motion.split(32)])
        decoded = torch.cat([self._tokenizer.decode(part).float().cpu() for part in ids.split(32)])
        uses = torch.bincount(ids.flatten().cpu(), minlength=self._tokenizer.config.num_codes)
        return {
            "explained_variance": explained_variance(motion.numpy(), decoded.numpy()),
            **{f"held_out_{name}": value for name, value in use_of_codes(uses.float()).items()},
        }


def _sample(clip: ClipSample, size: tuple[int, int]) -> Sample:
    return torch.from_numpy(motion_features(clip.motion, clip.width, clip.height, size)), clip.num_frames
