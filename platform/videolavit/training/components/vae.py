"""Training of the VAE of the keyframe detokenizer or of the video detokenizer, where no pretrained one is at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.generation.output import save_picture, save_video, side_by_side
from videolavit.media.quality import psnr
from videolavit.media.resize import resize_picture
from videolavit.models.folder import ModelFolder
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective, generator_of
from videolavit.models.sampling import to_pixels, to_signed
from videolavit.models.vae.objective import VAEObjective
from videolavit.models.vae.temporal import initialize_from_image_vae

from ..component import Component
from ..data import DataError, Item, SampleSource
from ..frames import ClipWithFrames, frame_sources
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import MappedSource, data_identity, picture_sources, sample_stream, validation_items

VIDEO_VAE = "video_detokenizer/vae"
SHOWN_FPS = 6


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VAETraining:
    """Training of a VAE. Nothing of it is published: Video-LaVIT took the trained VAEs of Stable Diffusion.

    Args:
        part: VAE to train. The VAE of videos is trained on sequences, because its decoder attends to neighbouring
            frames.
        height: Height of the pictures, in pixels; None for the model's own.
        width: Width of the pictures, in pixels; None for the model's own.
        start: First weights: `model` for those of the part; `keyframe` starts the VAE of videos from the model's VAE of
            keyframes, as Stable Video Diffusion's was started from Stable Diffusion's.
        train_encoder: Trains the encoder too. False keeps the latents and trains the decoder alone, as Stable Video
            Diffusion did.
        sequences: Sequences of the VAE of videos: `clips` decodes the frames of clip shards again; `pictures` pans a
            window over keyframes or images.
        frames: Length of a sequence, in frames. In sampling, 8 frames are decoded at once.
        edges: Weight of the absolute error of differences between neighbouring pixels, beside the squared error of
            pixels. It keeps edges sharp, as a perceptual loss would.
        kl: Weight of the KL divergence of the latents from a standard normal distribution. Small, as Stable
            Diffusion's: the scaling factor brings the latents to a scale of 1.
        validation_samples: Held-out samples of the validation loss.
        show_samples: Number of the held-out samples that are reconstructed in `samples/`.
    """

    part: Literal["keyframe_detokenizer/vae", "video_detokenizer/vae"] = "keyframe_detokenizer/vae"
    height: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    start: Literal["model", "keyframe"] = "model"
    train_encoder: bool = True
    sequences: Literal["clips", "pictures"] = "clips"
    frames: int = Field(default=8, ge=1)
    edges: float = Field(default=0.05, ge=0)
    kl: float = Field(default=1e-4, ge=0)
    validation_samples: int = Field(default=32, ge=1)
    show_samples: int = Field(default=4, ge=0)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        if self.start == "keyframe" and self.part != VIDEO_VAE:
            raise DataError(
                f"objective.start=keyframe is for objective.part={VIDEO_VAE}; the keyframe VAE is {self.part}"
            )
        sizes, temporal = model.sizes, self.part == VIDEO_VAE
        height = self.height or (sizes.video_height if temporal else sizes.keyframe_height)
        width = self.width or (sizes.video_width if temporal else sizes.keyframe_width)

        def sources(urls: list[str]) -> list[SampleSource]:
            if temporal and self.sequences == "clips":
                return frame_sources(urls, inputs.storage, (height, width))
            found = picture_sources(urls, inputs.storage)
            if temporal:
                return found
            return [MappedSource(source, lambda picture: resize_picture(picture, height, width)) for source in found]

        def collate(items: Sequence[Item], samples: Sequence[Any]) -> Batch:
            positions = [item.position for item in items]
            if temporal:
                size = (self.frames, height, width)
                pairs = zip(positions, samples, strict=True)
                pictures = np.stack([_sequence(one, size, inputs.seed, position) for position, one in pairs])
            else:
                pictures = np.stack(samples)
            counts = dict.fromkeys(("pixels", "edges", "kl"), float(len(items)))
            return Batch({"pictures": torch.from_numpy(pictures).movedim(-1, -3)}, counts, positions)

        train, held_out = sources(inputs.train), sources(inputs.validation)
        weights = {"pixels": 1.0, "edges": self.edges, "kl": self.kl}
        validation = validation_items(held_out, self.validation_samples)
        shown = validation[: self.show_samples]

        def write_samples(objective: Objective, folder: Path) -> dict[str, float]:
            assert isinstance(objective, VAEObjective)
            items, samples = zip(*load_items(shown), strict=True)
            batch = collate(items, samples)
            return _write_reconstructions(objective.vae, batch.inputs["pictures"].movedim(-3, -1).numpy(), folder)

        vae = model.load(self.part)
        if self.start == "keyframe":
            initialize_from_image_vae(vae, model.load("keyframe_detokenizer/vae"))
        return Component(
            objective=VAEObjective(vae, self.part, weights, self.train_encoder),
            stream=sample_stream(train, inputs),
            collate=collate,
            validation=validation,
            write_samples=write_samples if shown else None,
            identity=data_identity(train) | {"size": [height, width]},
        )


def _sequence(sample: Any, size: tuple[int, int, int], seed: int, position: int) -> NDArray[np.uint8]:
    """Sequence uint8 [frames, height, width, 3] from a random place in a clip, or panned over a picture."""
    draws = torch.rand(4, generator=generator_of(seed, "sequence", position)).tolist()
    if not isinstance(sample, ClipWithFrames):
        return pan_window(sample, size, draws)
    frames, count = sample.frames, size[0]
    first = int(draws[0] * max(len(frames) - count + 1, 1))
    taken = frames[first : first + count]
    return np.concatenate([taken, np.repeat(taken[-1:], count - len(taken), axis=0)])


def pan_window(picture: NDArray[np.uint8], size: tuple[int, int, int], ends: Sequence[float]) -> NDArray[np.uint8]:
    """Pans a window of three quarters of a picture's sides over it, at constant speed.

    Args:
        size: (frames, height, width) of the result.
        ends: First and last place of the window as (top, left, top, left), each from 0 to 1.
    """
    count, height, width = size
    high, wide = (max(side * 3 // 4, 1) for side in picture.shape[:2])
    room = np.array([picture.shape[0] - high, picture.shape[1] - wide])
    places = np.linspace(np.array(ends[:2]) * room, np.array(ends[2:]) * room, count).round().astype(int)
    return np.stack(
        [resize_picture(picture[top : top + high, left : left + wide], height, width) for top, left in places]
    )


def _write_reconstructions(vae: Any, pictures: NDArray[np.uint8], folder: Path) -> dict[str, float]:
    """Writes pictures or sequences beside their reconstructions; returns the mean PSNR in dB."""
    values = []
    for number, original in enumerate(pictures):
        frames = original if original.ndim == 4 else original[None]
        latents = vae.encode(to_signed(frames).to(vae.device, vae.dtype)).latent_dist.mode()
        options = {"num_frames": len(frames)} if original.ndim == 4 else {}
        ours = to_pixels(vae.decode(latents, **options).sample)
        values.append(psnr(frames, ours))
        if original.ndim == 4:
            save_video(side_by_side(frames, ours), folder / f"{number:02d}.mp4", SHOWN_FPS, {})
        else:
            save_picture(side_by_side(frames[0], ours[0]), folder / f"{number:02d}.png", {})
    return {"psnr": float(np.mean(values))}
