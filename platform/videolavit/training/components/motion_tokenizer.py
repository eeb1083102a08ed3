"""Training of the motion tokenizer: motion of clips to codes and back."""

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
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import ClipSample, MappedSource, clip_sources, data_identity, sample_stream, validation_items

Sample = tuple[Tensor, int]
"""Motion [2, time, height, width] at the scale of the tokenizer, and its number of frames."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MotionTokenizerTraining:
    """Training of the motion tokenizer.

    Args:
        commitment: Weight of the distance of encoder outputs to their codes. Not published; VQ-VAE's value is 0.25.
        codebook: Learning of the codebook.
        validation_samples: Held-out clips of the validation loss.
    """

    commitment: float = Field(default=0.25, ge=0)
    codebook: CodebookSettings = Field(default_factory=CodebookSettings)
    validation_samples: int = Field(default=256, ge=1)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        tokenizer: MotionTokenizer = model.load("motion_tokenizer")
        config = tokenizer.config
        size = (config.grid_height, config.grid_width)

        def sources(urls: list[str]) -> list[SampleSource]:
            clips = clip_sources(urls, inputs.storage)
            return [MappedSource(source, lambda clip: _sample(clip, size)) for source in clips]

        def collate(items: Sequence[Item], samples: Sequence[Sample]) -> Batch:
            frames = torch.tensor([frames for _, frames in samples])
            counts = {"reconstruction": float(frames.sum()) * 2 * size[0] * size[1]}
            counts["commitment"] = float(len(items) * config.num_tokens)
            motion = torch.stack([motion for motion, _ in samples])
            return Batch({"motion": motion, "num_frames": frames}, counts, [item.position for item in items])

        train = sources(inputs.train)
        validation = validation_items(sources(inputs.validation), self.validation_samples)
        objective = MotionTokenizerObjective(tokenizer, self.codebook, self.commitment)

        def evaluate(objective: Objective, folder: Path) -> dict[str, float]:
            return _evaluate(tokenizer, validation)

        return Component(
            objective=objective,
            stream=sample_stream(train, inputs),
            collate=collate,
            validation=validation,
            write_samples=evaluate if validation else None,
            identity=data_identity(train) | {"tokenizer": [*size, config.num_codes]},
        )


@torch.no_grad()
def _evaluate(tokenizer: MotionTokenizer, items: Sequence[Item]) -> dict[str, float]:
    """Reconstruction of held-out motion, and how evenly its codes are used."""
    device = next(tokenizer.parameters()).device
    motion = torch.stack([sample[0] for _, sample in load_items(items)])
    ids = torch.cat([tokenizer.encode(part.to(device)) for part in motion.split(32)])
    decoded = torch.cat([tokenizer.decode(part).float().cpu() for part in ids.split(32)])
    uses = torch.bincount(ids.flatten().cpu(), minlength=tokenizer.config.num_codes)
    return {
        "explained_variance": explained_variance(motion.numpy(), decoded.numpy()),
        **{f"held_out_{name}": value for name, value in use_of_codes(uses.float()).items()},
    }


def _sample(clip: ClipSample, size: tuple[int, int]) -> Sample:
    return torch.from_numpy(motion_features(clip.motion, clip.width, clip.height, size)), clip.num_frames
