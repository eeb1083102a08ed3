"""Codes to pixels: keyframes and clips of a batch of requests (docs/model.md, section 4)."""

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from videolavit.media.resize import resize_picture
from videolavit.models.folder import ModelFolder
from videolavit.models.sampling import OnStep, check_size, draw_noise
from videolavit.models.video_detokenizer import VideoDetokenizer

from .program import ClipRequest, KeyframeRequest
from .prompts import Picture
from .runtime import Runtime
from .settings import GenerateSettings


def generate_keyframes(
    runtime: Runtime, requests: Sequence[KeyframeRequest], settings: GenerateSettings, on_step: OnStep | None = None
) -> Picture:
    """Generates keyframes [batch, height, width, 3]; fewer if `on_step` cancels some.

    Denoising starts from noise, or near the last frame of the clip before, as `settings.constraint` says.

    Args:
        requests: Requests that all have a last frame, or that all have none.
    """
    size, steps, rate = keyframe_size(runtime, settings), settings.keyframe_steps, settings.constraint_rate
    noise_generators = [request.random() for request in requests]
    step_generators = [request.step_random() for request in requests]
    last = [request.last for request in requests if request.last is not None]
    with runtime.use("keyframe_detokenizer") as detokenizer:
        codes = [torch.tensor(request.codes, dtype=torch.long) for request in requests]
        conditions = detokenizer.decode_codes(codes)
        if not last:
            start = detokenizer.noise(*size, steps, noise_generators)
        else:
            latents = detokenizer.encode(np.stack(last), *size)
            if settings.constraint == "inversion":
                start = detokenizer.inverted_start(latents, conditions, rate, steps)
            else:
                noise = draw_noise(tuple(latents.shape[1:]), noise_generators, latents)
                start = detokenizer.noised_start(latents, noise, rate, steps)
        sampled = detokenizer.sample(conditions, start, steps, settings.keyframe_guidance, step_generators, on_step)
        return detokenizer.decode(sampled)


def generate_clips(
    runtime: Runtime, requests: Sequence[ClipRequest], settings: GenerateSettings, on_step: OnStep | None = None
) -> Picture:
    """Generates the frames of clips, [batch, time, height, width, 3]; fewer clips if `on_step` cancels some.

    Args:
        requests: Requests that all have motion codes, or that all have motion.
    """
    size = video_size(runtime, settings)
    given = [request.motion for request in requests if isinstance(request.motion, Tensor)]
    if given:
        motion = torch.stack(given)
    else:
        latent_size = runtime.loaded("video_detokenizer").latent_size(*size)
        with runtime.use("motion_tokenizer") as tokenizer, torch.inference_mode():
            codes = torch.tensor([request.motion for request in requests], device=runtime.device)
            motion = tokenizer.decode_to(codes, *latent_size)
    keyframes = np.stack([resize_picture(request.keyframe, *size) for request in requests])
    generators = [request.random() for request in requests]
    detokenizer: VideoDetokenizer
    with runtime.use("video_detokenizer") as detokenizer:
        return detokenizer.generate(keyframes, motion, generators, settings, on_step)


def keyframe_size(runtime: Runtime, settings: GenerateSettings) -> tuple[int, int]:
    """Height and width of keyframes in pixels. Raises ValueError for a size that the model cannot generate."""
    sizes = runtime.model.sizes
    size = settings.height or sizes.keyframe_height, settings.width or sizes.keyframe_width
    check_size(*size, runtime.loaded("keyframe_detokenizer").pixel_multiple)
    return size


def video_size(runtime: Runtime, settings: GenerateSettings) -> tuple[int, int]:
    """Height and width of videos in pixels. Raises ValueError for a size that the model cannot generate."""
    sizes = runtime.model.sizes
    size = settings.video_height or sizes.video_height, settings.video_width or sizes.video_width
    check_size(*size, runtime.loaded("video_detokenizer").pixel_multiple)
    return size


def nearest_size(model: ModelFolder, height: float, width: float) -> tuple[int, int]:
    """Height and width, in pixels, of the video that the model can make nearest to another size."""
    multiple = model.pixel_multiple("video_detokenizer")
    high, wide = (max(round(side / multiple), 1) * multiple for side in (height, width))
    return high, wide


def size_like(model: ModelFolder, height: int, width: int) -> tuple[int, int]:
    """Height and width of about as many pixels as the model's own videos, in the aspect ratio of another video."""
    scale = sqrt(model.sizes.video_width * model.sizes.video_height / (width * height))
    return nearest_size(model, height * scale, width * scale)
