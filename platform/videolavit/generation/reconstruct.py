"""Reconstruction of a video from its tokens, as in the paper's demonstration."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass as settings_dataclass

from videolavit.media import Clip, DecomposeSettings, VideoInput, decompose, iter_pictures
from videolavit.media.quality import psnr, ssim
from videolavit.media.resize import resize_picture
from videolavit.models.network import STRICT
from videolavit.models.video_detokenizer import VideoSettings
from videolavit.progress import OnProgress, Progress, ignore_progress

from .prompts import Picture, encode_pictures
from .runtime import Runtime
from .settings import generator


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class ReconstructSettings(VideoSettings):
    """Settings for reconstructing a video.

    Args:
        keyframes: `tokens` generates keyframes from their codes; `original` keeps them, to see the motion alone.
        motion: `tokens` decodes motion from its codes; `original` gives the U-Net the original motion vectors.
        keyframe_steps: Denoising steps of a keyframe.
        keyframe_guidance: Guidance scale of the keyframe U-Net.
        video_width: Width of the result, in pixels; None for about as many pixels as the model's own size, in the
            aspect ratio of the source.
        video_height: Height of the result, in pixels; None as for the width.
        clips: Number of clips to reconstruct from the start of the video; None for all.
        seed: Seed of all noise.
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
    """Original and reconstruction of a clip.

    Args:
        original: uint8 [time, height, width, 3], resized to the size of the reconstruction.
        frames: Reconstruction, of the same shape.
        visual: Visual codes of the keyframe.
        motion: Motion codes.
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
        """Structural similarity, averaged over the frames."""
        return ssim(self.original, self.frames)


def reconstruct_clips(
    runtime: Runtime,
    source: VideoInput,
    settings: ReconstructSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[ReconstructedClip]:
    """Encodes the clips of a video to tokens, and yields their reconstructions one by one, in bounded memory.

    Args:
        source: Path or bytes of the video. It is opened twice at once.

    Raises:
        MediaError: the source cannot be decomposed.
        ValueError: a size that the model cannot generate.
        ModelError: the model lacks a part.
    """
    settings = settings or ReconstructSettings()
    pictures = iter_pictures(source, DecomposeSettings())
    for number, clip in enumerate(decompose(source, DecomposeSettings())):
        if number == settings.clips:
            return
        size = _output_size(runtime, clip, settings)
        original = np.stack([resize_picture(next(pictures), *size) for _ in range(clip.num_frames)])
        yield _reconstruct_clip(runtime, clip, number, original, settings, on_progress)


def _reconstruct_clip(
    runtime: Runtime, clip: Clip, number: int, original: Picture, settings: ReconstructSettings, on_progress: OnProgress
) -> ReconstructedClip:
    size: tuple[int, int] = (original.shape[1], original.shape[2])
    with runtime.use("visual_tokenizer") as tokenizer:
        (visual,) = encode_pictures([clip.keyframe], tokenizer)
    keyframe = clip.keyframe
    if settings.keyframes == "tokens":
        sizes = runtime.model.sizes
        with runtime.use("keyframe_detokenizer") as detokenizer:
            (keyframe,) = detokenizer.paint(
                [torch.tensor(visual, dtype=torch.long)],
                (sizes.keyframe_height, sizes.keyframe_width),
                settings.keyframe_steps,
                settings.keyframe_guidance,
                [generator(settings.seed, f"keyframe {number}")],
                lambda done, total: on_progress(Progress(f"clip {number + 1} keyframe", done, total)),
            )
    latent_size = runtime.loaded("video_detokenizer").latent_size(*size)
    with runtime.use("motion_tokenizer") as tokenizer, torch.inference_mode():
        features = torch.from_numpy(clip.features(tokenizer.config.grid))[None].to(runtime.device, runtime.dtype)
        codes = tokenizer.encode(features)
        motion = tokenizer.decode_to(codes, *latent_size)
    if settings.motion == "original":
        motion = torch.from_numpy(clip.features(latent_size, rescale=False))[None].to(runtime.device)
    with runtime.use("video_detokenizer") as detokenizer:
        (frames,) = detokenizer.generate(
            resize_picture(keyframe, *size)[None],
            motion,
            [generator(settings.seed, f"video {number}")],
            settings,
            lambda done, total: on_progress(Progress(f"clip {number + 1} frames", done, total)),
        )
    return ReconstructedClip(original, frames[: clip.num_frames], visual, codes[0].tolist())


def _output_size(runtime: Runtime, clip: Clip, settings: ReconstructSettings) -> tuple[int, int]:
    """Height and width of the reconstruction, in pixels."""
    if settings.video_width is not None and settings.video_height is not None:
        return settings.video_height, settings.video_width
    multiple = runtime.loaded("video_detokenizer").pixel_multiple
    sizes = runtime.model.sizes
    scale = sqrt(sizes.video_width * sizes.video_height / (clip.width * clip.height))
    height, width = (max(round(side * scale / multiple), 1) * multiple for side in (clip.height, clip.width))
    return height, width
