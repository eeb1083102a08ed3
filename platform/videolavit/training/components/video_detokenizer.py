"""Training of the video detokenizer, from a keyframe and motion to frames."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
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

from ..component import Component
from ..data import DataError, Item, Mixture, SampleSource, SampleStream
from ..frames import ClipWithFrames, frame_sources
from ..loader import load_items
from ..settings import TrainInputs
from ..sources import CachedSource, ClipSample, MappedSource, Tensors, data_identity, validation_items

VIDEO_DETOKENIZER = "video_detokenizer"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ResolutionStage:
    """Resolution of a part of the training.

    Args:
        from_sample: First sample of the stage, as a position in the data order: step times batch.
        height: Height of the frames, in pixels.
        width: Width of the frames, in pixels.
    """

    from_sample: int = Field(ge=0)
    height: int = Field(ge=1)
    width: int = Field(ge=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoDetokenizerTraining:
    """Training of the video detokenizer.

    Args:
        stages: Resolutions in turn; None for the model's own throughout. Published: 384 x 384 for 50k steps of 128
            samples, then 768 x 768 or 1024 x 576 for 10k.
        log_sigma: Mean and standard deviation of the logarithm of the noise levels. The default is published.
        drop_conditions: Share of the samples without keyframe and motion, for classifier-free guidance. Not published;
            Stable Video Diffusion was trained with 0.1.
        token_share: Share of the samples whose motion is encoded and decoded by the motion tokenizer, as it is in
            generation. The others have the motion vectors of the video. Not published; the released sampler takes
            either.
        cache: Folder that stores the latents of each clip's frames. The first epoch fills it, later ones read it. None
            decodes and encodes the frames in every step.
        validation_samples: Held-out clips of the validation loss.
        show_samples: Number of the held-out clips that are generated from keyframe and motion in `samples/`.
        show: Sampling of these clips.
    """

    stages: tuple[ResolutionStage, ...] | None = None
    log_sigma: tuple[float, float] = (1.0, 1.2)
    drop_conditions: float = Field(default=0.1, ge=0, lt=1)
    token_share: float = Field(default=0.0, ge=0, le=1)
    cache: str | None = None
    validation_samples: int = Field(default=32, ge=1)
    show_samples: int = Field(default=4, ge=0)
    show: VideoSettings = Field(default_factory=VideoSettings)

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        motion_encoder, unet, vae, scheduler = (
            model.load(f"{VIDEO_DETOKENIZER}/{part}") for part in ("motion_encoder", "unet", "vae", "scheduler")
        )
        tokenizer: MotionTokenizer | None = model.load("motion_tokenizer") if self.token_share else None
        fixed = [f"{VIDEO_DETOKENIZER}/vae", *(["motion_tokenizer"] if tokenizer is not None else [])]
        detokenizer = VideoDetokenizer(motion_encoder, unet, vae, scheduler)
        sizes = model.sizes
        stages = self.stages or (ResolutionStage(from_sample=0, height=sizes.video_height, width=sizes.video_width),)
        _check_stages(stages, detokenizer)

        def sources(urls: list[str], stage: ResolutionStage) -> list[SampleSource]:
            size = (stage.height, stage.width)
            latent = detokenizer.latent_size(*size)
            clips = frame_sources(urls, inputs.storage, size)
            plain: list[SampleSource] = [
                MappedSource(source, lambda clip: _tensors(clip, latent, tokenizer)) for source in clips
            ]
            if self.cache is None:
                return plain

            def encode(tensors: Tensors) -> Tensors:
                latents = encode_frames(vae, tensors["frames"][None].to(vae.device))[0]
                return {name: value for name, value in tensors.items() if name != "frames"} | {"latents": latents}

            folder = Folder(self.cache, inputs.storage)
            identity = {
                "vae": model.digest(f"{VIDEO_DETOKENIZER}/vae"),
                "size": list(size),
                "grid": tokenizer is not None,
            }
            return [CachedSource(source, encode, folder, identity) for source in plain]

        train = [sources(inputs.train, stage) for stage in stages]
        mixtures = [Mixture(found, inputs.weights, seed=inputs.seed, window=inputs.window) for found in train]
        held_out = sources(inputs.validation, stages[-1])
        clips_with_frames = frame_sources(inputs.validation, inputs.storage, (stages[-1].height, stages[-1].width))
        shown = validation_items(clips_with_frames, self.validation_samples)[: self.show_samples]

        def write_samples(objective: Objective, folder: Path) -> dict[str, float]:
            clips: list[ClipWithFrames] = [clip for _, clip in load_items(shown)]
            generators = [generator_of(inputs.seed, "show", number) for number in range(len(clips))]
            latent = detokenizer.latent_size(stages[-1].height, stages[-1].width)
            motion = torch.stack([_motion(one.clip, latent, rescale=False) for one in clips])
            keyframes = np.stack([one.keyframe for one in clips])
            ours = detokenizer.generate(keyframes, motion, generators, self.show)
            values = []
            for number, (clip, generated) in enumerate(zip(clips, ours, strict=True)):
                left, right = clip.frames, generated[: len(clip.frames)]
                values.append(psnr(left, right))
                save_video(side_by_side(left, right), folder / f"{number:02d}.mp4", self.show.fps, {})
            return {"psnr": float(np.mean(values))}

        return Component(
            objective=VideoObjective(
                motion_encoder,
                unet,
                vae,
                tokenizer,
                scheduler,
                log_sigma=self.log_sigma,
                drop_conditions=self.drop_conditions,
                token_share=self.token_share,
            ),
            stream=SampleStream(StagedMixture([stage.from_sample for stage in stages], mixtures)),
            collate=_collate,
            validation=validation_items(held_out, self.validation_samples),
            write_samples=write_samples if shown else None,
            identity=data_identity(train[0]) | {"fixed": {part: model.digest(part) for part in fixed}},
        )


class StagedMixture:
    """Order whose samples come from another mixture in each stage.

    Args:
        starts: First position of each stage.
        mixtures: Mixture of each stage; all hold the same samples.
    """

    def __init__(self, starts: Sequence[int], mixtures: Sequence[Mixture]) -> None:
        self._stages = list(zip(starts, mixtures, strict=True))

    def item(self, position: int) -> Item:
        return next(mixture for start, mixture in reversed(self._stages) if start <= position).item(position)


def _check_stages(stages: Sequence[ResolutionStage], detokenizer: VideoDetokenizer) -> None:
    starts = [stage.from_sample for stage in stages]
    if starts[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        raise DataError(f"objective.stages must start at sample 0 and follow each other, not at {starts}")
    try:
        for stage in stages:
            detokenizer.latent_size(stage.height, stage.width)
    except ValueError as error:
        raise DataError(f"{error}; change objective.stages") from None


def _tensors(sample: ClipWithFrames, latent: tuple[int, int], tokenizer: MotionTokenizer | None) -> Tensors:
    """Inputs of the objective for a clip. A short clip is padded with its last frame."""
    missing = CLIP_FRAMES - sample.clip.num_frames
    frames = np.concatenate([sample.frames, np.repeat(sample.frames[-1:], missing, axis=0)])
    tensors = {
        "frames": torch.from_numpy(frames),
        "keyframes": torch.from_numpy(sample.keyframe),
        "motion": _motion(sample.clip, latent, rescale=False),
        "num_frames": torch.tensor(sample.clip.num_frames),
    }
    if tokenizer is not None:
        grid = (tokenizer.config.grid_height, tokenizer.config.grid_width)
        tensors["grid"] = _motion(sample.clip, grid, rescale=True)
    return tensors


def _motion(clip: ClipSample, size: tuple[int, int], rescale: bool) -> torch.Tensor:
    return torch.from_numpy(motion_features(clip.motion, clip.width, clip.height, size, rescale=rescale))


def _collate(items: Sequence[Item], samples: Sequence[Tensors]) -> Batch:
    shapes = {tuple(one["motion"].shape) for one in samples}
    if len(shapes) > 1:
        raise DataError("two resolutions in one batch: let objective.stages begin at a multiple of the batch")
    inputs = {name: torch.stack([one[name] for one in samples]) for name in samples[0]}
    return Batch(inputs, {"diffusion": float(len(items))}, [item.position for item in items])
