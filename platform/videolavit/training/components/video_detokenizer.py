"""Trains a keyframe and motion -> frames."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.generation.output import save_video, side_by_side
from videolavit.media import CLIP_FRAMES, motion_features
from videolavit.media.quality import psnr
from videolavit.models.folder import ModelFolder
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.network import STRICT
from videolavit.models.objective import Batch, Objective, generator_of
from videolavit.models.video_detokenizer import VideoDetokenizer, VideoSettings
from videolavit.models.video_detokenizer.objective import VideoObjective, encode_frames
from videolavit.records.storage import Folder

from ..cached import CachedSource, Tensors
from ..component import Component
from ..data import DataError, Item, Mixture, SampleSource, SampleStream
from ..frames import FramedClip, frame_sources
from ..inputs import Inputs
from ..loader import usable
from ..sources import ClipSample, MappedSource, data_facts, validation_items

PART = "video_detokenizer"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage:
    """A resolution, from a sample on.

    Args:
        from_sample: Position in the data order: the step times the batch.
        height: Of the frames in pixels.
        width: Of the frames in pixels.
    """

    from_sample: int = Field(ge=0)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Training of the video detokenizer.

    Args:
        stages: Resolutions in turn; None for the model's own throughout. Published: 384 x 384 for 50k steps of 128
            samples, then 768 x 768 or 1024 x 576 for 10k.
        log_sigma: Mean and standard deviation of the noise levels' logarithm; as published.
        drop_conditions: Share of the samples without keyframe and motion, which guidance compares with. Not published;
            0.1 is what Stable Video Diffusion was trained with.
        token_share: Share of the samples whose motion went through the motion tokenizer, as in generation. The rest
            have the video's own vectors. Not published; the released sampler takes either.
        cache: Local folder that keeps the latents of each clip's frames: the first epoch fills it, later ones read it.
            None decodes and encodes the frames anew every time.
        validation_samples: Held-out samples whose loss is measured.
        show_samples: Of these, the first that are made from their keyframe and motion, to look at.
        show: How.
    """

    stages: tuple[Stage, ...] | None = None
    log_sigma: tuple[float, float] = (1.0, 1.2)
    drop_conditions: float = Field(default=0.1, ge=0, lt=1)
    token_share: float = Field(default=0.0, ge=0, le=1)
    cache: str | None = None
    validation_samples: int = Field(default=32, ge=1)
    show_samples: int = Field(default=4, ge=0)
    show: VideoSettings = Field(default_factory=VideoSettings)


def build(model: ModelFolder, inputs: Inputs, settings: Settings) -> Component:
    """The component. Raises DataError and ModelError."""
    motion_encoder, unet, vae, scheduler = (
        model.load(f"{PART}/{part}") for part in ("motion_encoder", "unet", "vae", "scheduler")
    )
    tokenizer: MotionTokenizer | None = model.load("motion_tokenizer") if settings.token_share else None
    fixed = [f"{PART}/vae", *(["motion_tokenizer"] if tokenizer is not None else [])]
    detokenizer = VideoDetokenizer(motion_encoder, unet, vae, scheduler)
    sizes = model.sizes
    stages = settings.stages or (Stage(from_sample=0, height=sizes.video_height, width=sizes.video_width),)
    _check_stages(stages, detokenizer)

    def sources(named: list[str], stage: Stage) -> list[SampleSource]:
        size = (stage.height, stage.width)
        latent = detokenizer.latent_size(*size)
        framed = frame_sources(named, inputs.storage, size)
        plain: list[SampleSource] = [
            MappedSource(source, lambda one: _tensors(one, latent, tokenizer)) for source in framed
        ]
        if settings.cache is None:
            return plain
        folder = Folder(settings.cache, inputs.storage)
        identity = {"vae": model.digest(f"{PART}/vae"), "size": list(size), "grid": tokenizer is not None}
        return [CachedSource(source, lambda one: _with_latents(one, vae), folder, identity) for source in plain]

    train = [sources(inputs.train, stage) for stage in stages]
    mixtures = [Mixture(one, inputs.weights, seed=inputs.seed, window=inputs.window) for one in train]
    held_out = sources(inputs.validation, stages[-1])
    framed = frame_sources(inputs.validation, inputs.storage, (stages[-1].height, stages[-1].width))
    shown = validation_items(framed, settings.validation_samples)[: settings.show_samples]

    def show(objective: Objective, folder: Path) -> dict[str, float]:
        clips: list[FramedClip] = [clip for _, clip in usable(shown)]
        generators = [generator_of(inputs.seed, "show", number) for number in range(len(clips))]
        latent = detokenizer.latent_size(stages[-1].height, stages[-1].width)
        motion = torch.stack([_motion(one.clip, latent, rescale=False) for one in clips])
        keyframes = np.stack([one.keyframe for one in clips])
        ours = detokenizer.generate(keyframes, motion, generators, settings.show)
        return _compared([one.frames for one in clips], ours, folder, settings.show.fps)

    return Component(
        objective=VideoObjective(
            motion_encoder,
            unet,
            vae,
            tokenizer,
            scheduler,
            log_sigma=settings.log_sigma,
            drop_conditions=settings.drop_conditions,
            token_share=settings.token_share,
        ),
        stream=SampleStream(StagedMixture([stage.from_sample for stage in stages], mixtures)),
        collate=_collate,
        validation=validation_items(held_out, settings.validation_samples),
        show=show if shown else None,
        facts=data_facts(train[0]) | {"fixed": {part: model.digest(part) for part in fixed}},
    )


class StagedMixture:
    """The same samples in the same order, from other sources in each stage.

    Args:
        starts: First position of each stage.
        mixtures: Of each stage.
    """

    def __init__(self, starts: Sequence[int], mixtures: Sequence[Mixture]) -> None:
        self._stages = list(zip(starts, mixtures, strict=True))

    def item(self, position: int) -> Item:
        return next(mixture for start, mixture in reversed(self._stages) if start <= position).item(position)


def _check_stages(stages: Sequence[Stage], detokenizer: VideoDetokenizer) -> None:
    starts = [stage.from_sample for stage in stages]
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        raise DataError(f"objective.stages must start at sample 0 and follow each other, not at {starts}")
    try:
        for stage in stages:
            detokenizer.latent_size(stage.height, stage.width)
    except ValueError as error:
        raise DataError(f"{error}; change objective.stages") from None


def _tensors(framed: FramedClip, latent: tuple[int, int], tokenizer: MotionTokenizer | None) -> Tensors:
    """A clip's inputs of the objective; short ones stand still behind their end."""
    missing = CLIP_FRAMES - framed.clip.num_frames
    frames = np.concatenate([framed.frames, np.repeat(framed.frames[-1:], missing, axis=0)])
    tensors = {
        "frames": torch.from_numpy(frames),
        "keyframes": torch.from_numpy(framed.keyframe),
        "motion": _motion(framed.clip, latent, rescale=False),
        "num_frames": torch.tensor(framed.clip.num_frames),
    }
    if tokenizer is not None:
        grid = (tokenizer.config.grid_height, tokenizer.config.grid_width)
        tensors["grid"] = _motion(framed.clip, grid, rescale=True)
    return tensors


def _motion(clip: ClipSample, size: tuple[int, int], rescale: bool) -> torch.Tensor:
    return torch.from_numpy(motion_features(clip.motion, clip.width, clip.height, size, rescale=rescale))


def _with_latents(tensors: Tensors, vae: Any) -> Tensors:
    """Latents in place of the frames."""
    latents = encode_frames(vae, tensors["frames"][None].to(vae.device))[0]
    return {name: value for name, value in tensors.items() if name != "frames"} | {"latents": latents}


def _compared(theirs: Sequence[NDArray[np.uint8]], ours: NDArray[np.uint8], folder: Path, fps: int) -> dict[str, float]:
    """Writes clips side by side; returns how close they are."""
    values = []
    for number, (left, right) in enumerate(zip(theirs, ours, strict=True)):
        values.append(psnr(left, right[: len(left)]))
        save_video(side_by_side(left, right[: len(left)]), folder / f"{number:02d}.mp4", fps, {})
    return {"psnr": float(np.mean(values))}


def _collate(items: Sequence[Item], samples: Sequence[Tensors]) -> Batch:
    shapes = {tuple(one["motion"].shape) for one in samples}
    if len(shapes) > 1:
        raise DataError("two resolutions in one batch: let objective.stages begin at a multiple of the batch")
    inputs = {name: torch.stack([one[name] for one in samples]) for name in samples[0]}
    return Batch(inputs, {"diffusion": float(len(items))}, [item.position for item in items])
