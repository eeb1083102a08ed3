"""A video through its tokens and back: the paper's demonstration."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass
from torchmetrics.functional.image import structural_similarity_index_measure

from videolavit.evaluation.reconstruction import psnr
from videolavit.media import Clip, DecomposeSettings, VideoInput, decompose, iter_pictures
from videolavit.media.resize import resize_picture
from videolavit.models.network import STRICT
from videolavit.models.video_detokenizer import VideoSettings

from .generate import Progress, silent
from .prompts import Picture, encode_pictures
from .runtime import Runtime
from .settings import generator


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class ReconstructSettings(VideoSettings):
    """How a video is reconstructed.

    Args:
        keyframes: `tokens` paints them from their codes; `original` keeps them, to see the motion alone.
        motion: `tokens` decodes it from its codes; `original` gives the U-Net the vectors as they are.
        keyframe_steps: Denoising steps of a keyframe.
        keyframe_guidance: Guidance of the keyframe U-Net.
        video_width: Of the result in pixels; None for about as many pixels as the model's own size, in the source's
            aspect ratio.
        video_height: Of the result in pixels, as the width.
        clips: Only so many clips from the start; None for all.
        seed: Decides all noise.
    """

    keyframes: Literal["tokens", "original"] = "tokens"
    motion: Literal["tokens", "original"] = "tokens"
    keyframe_steps: int = 50
    keyframe_guidance: float = 3.0
    video_width: int | None = None
    video_height: int | None = None
    clips: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.video_width is None) != (self.video_height is None):
            raise ValueError("give both video_width and video_height, or neither")
        for name in ("keyframe_steps", "video_steps", "fps", "decode_chunk", "clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, eq=False)
class ReconstructedClip:
    """A clip before and after.

    Args:
        original: uint8 [time, height, width, 3], at the size of the reconstruction.
        frames: Like the original.
        visual: Codes of the keyframe.
        motion: Codes of the motion.
    """

    original: Picture
    frames: Picture
    visual: list[int]
    motion: list[int]

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio over all pixels, in dB."""
        return psnr(self.original, self.frames)

    @property
    def ssim(self) -> float:
        """Structural similarity, the mean over the frames."""
        ours, theirs = (torch.tensor(video).permute(0, 3, 1, 2).float() for video in (self.frames, self.original))
        similarity = structural_similarity_index_measure(ours, theirs, data_range=255.0)
        assert isinstance(similarity, torch.Tensor)
        return float(similarity)


def reconstruct(
    runtime: Runtime,
    source: VideoInput,
    settings: ReconstructSettings | None = None,
    on_progress: Progress | None = None,
) -> Iterator[ReconstructedClip]:
    """Yields the clips of a video, each through its tokens, with bounded memory.

    Args:
        source: Path, or bytes; it is read twice at once.

    Raises:
        MediaError: the source cannot be decomposed.
        ValueError: a size that the model cannot do.
        ModelError: the model lacks a part.
    """
    settings = settings or ReconstructSettings()
    pictures = iter_pictures(source, DecomposeSettings())
    for number, clip in enumerate(decompose(source, DecomposeSettings())):
        if number == settings.clips:
            return
        size = _size(runtime, clip, settings)
        original = np.stack([resize_picture(next(pictures), *size) for _ in range(clip.num_frames)])
        yield _clip(runtime, clip, number, original, settings, on_progress or silent)


def _clip(
    runtime: Runtime,
    clip: Clip,
    number: int,
    original: Picture,
    settings: ReconstructSettings,
    tell: Progress,
) -> ReconstructedClip:
    height, width = original.shape[1:3]
    with runtime.use("visual_tokenizer") as tokenizer:
        (visual,) = encode_pictures([clip.keyframe], tokenizer)
    keyframe = clip.keyframe
    if settings.keyframes == "tokens":
        keyframe = _paint(runtime, visual, number, settings, tell)
    latent_size = runtime.loaded("video_detokenizer").latent_size(height, width)
    codes, motion = _motion(runtime, clip, latent_size, settings)
    with runtime.use("video_detokenizer") as detokenizer:
        frames = detokenizer.generate(
            resize_picture(keyframe, height, width)[None],
            motion,
            [generator(settings.seed, f"video {number}")],
            settings,
            lambda done, total: tell(f"clip {number + 1} frames", done, total),
        )[0]
    return ReconstructedClip(original, frames[: clip.num_frames], visual, codes)


def _paint(runtime: Runtime, visual: list[int], number: int, settings: ReconstructSettings, tell: Progress) -> Picture:
    sizes = runtime.model.sizes
    with runtime.use("keyframe_detokenizer") as detokenizer:
        picture: Picture = detokenizer.paint(
            [torch.tensor(visual, dtype=torch.long)],
            (sizes.keyframe_height, sizes.keyframe_width),
            settings.keyframe_steps,
            settings.keyframe_guidance,
            [generator(settings.seed, f"keyframe {number}")],
            lambda done, total: tell(f"clip {number + 1} keyframe", done, total),
        )[0]
    return picture


def _motion(
    runtime: Runtime, clip: Clip, latent_size: tuple[int, int], settings: ReconstructSettings
) -> tuple[list[int], torch.Tensor]:
    """Codes of a clip's motion, and the motion [1, 2, time, *latent_size] that the U-Net is given."""
    with runtime.use("motion_tokenizer") as tokenizer, torch.inference_mode():
        features = torch.from_numpy(clip.features(tokenizer.config.grid))[None].to(runtime.device, runtime.dtype)
        codes = tokenizer.encode(features)
        motion = tokenizer.decode_to(codes, *latent_size)
    if settings.motion == "original":
        motion = torch.from_numpy(clip.features(latent_size, rescale=False))[None].to(runtime.device)
    return codes[0].tolist(), motion


def _size(runtime: Runtime, clip: Clip, settings: ReconstructSettings) -> tuple[int, int]:
    """(height, width) of the reconstruction in pixels."""
    if settings.video_width is not None and settings.video_height is not None:
        return settings.video_height, settings.video_width
    multiple = runtime.loaded("video_detokenizer").pixel_multiple
    sizes = runtime.model.sizes
    scale = sqrt(sizes.video_width * sizes.video_height / (clip.width * clip.height))
    height, width = (max(round(side * scale / multiple), 1) * multiple for side in (clip.height, clip.width))
    return height, width
