"""Pictures and videos from prompts: the language model writes codes, the detokenizers turn them into pixels."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from videolavit.media.resize import resize_picture
from videolavit.models.keyframe_detokenizer import Conditions, KeyframeDetokenizer, Start
from videolavit.models.sampling import OnStep, check_size, draw_noise
from videolavit.models.video_detokenizer import VideoDetokenizer, VideoSettings

from .prompts import Picture, Prompt, encode_pictures, prompt_ids
from .runtime import Runtime
from .settings import GenerateSettings, generator
from .token_generator import GeneratedTokens, TokenGenerator

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, steps done and steps in all; it may raise to stop."""


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """A generated video.

    Args:
        frames: uint8 [time, height, width, 3].
        keyframes: The picture that each clip started from.
        visual: Visual codes of each written keyframe.
        motion: Motion codes of each clip.
    """

    frames: Picture
    keyframes: list[Picture]
    visual: list[list[int]]
    motion: list[list[int]]


@dataclass(frozen=True, eq=False)
class KeyframeRequest:
    """A keyframe to be painted.

    Args:
        codes: Its visual codes.
        seed: Of the request.
        clip: Its clip's number.
        last: The last frame of the clip before, uint8 [height, width, 3].
    """

    codes: Sequence[int]
    seed: int
    clip: int = 0
    last: Picture | None = None


@dataclass(frozen=True, eq=False)
class ClipRequest:
    """A clip to be animated.

    Args:
        keyframe: uint8 [height, width, 3], of any size.
        motion: Codes of its motion.
        seed: Of the request.
        clip: Its number.
    """

    keyframe: Picture
    motion: Sequence[int]
    seed: int
    clip: int = 0


def generate_images(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    settings: GenerateSettings | None = None,
    on_progress: Progress | None = None,
) -> list[Picture]:
    """A picture for each prompt.

    Args:
        prompts: Texts, or texts and pictures mixed.

    Raises:
        ValueError: a prompt or a size that the model cannot do.
        ModelError: the model lacks a part.
    """
    settings = settings or GenerateSettings()
    tell = on_progress or silent
    height, width = keyframe_size(runtime, settings)
    scripts = _scripts(runtime, prompts, markers=False)
    with _writer(runtime, settings) as writer:
        writer.check_length(scripts, [1] * len(scripts), motions=0)
        for mixed in (False, True):  # the guidance differs
            group = [s for s, prompt in zip(scripts, prompts, strict=True) if bool(prompt.pictures) == mixed]
            if group:
                guidance = settings.mixed_guidance if mixed else settings.visual_guidance
                writer.write_pictures(group, guidance, partial(_count, tell, "picture tokens", writer.visual_limits[1]))
    orders = [KeyframeRequest(script.visual[0], prompt.seed) for script, prompt in zip(scripts, prompts, strict=True)]
    return list(paint(runtime, orders, (height, width), settings, partial(tell, "clip 1 keyframe")))


def generate_videos(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    clips: int = 1,
    settings: GenerateSettings | None = None,
    on_progress: Progress | None = None,
) -> list[GeneratedVideo]:
    """A video for each prompt.

    The last picture of a prompt, if it has one, is the first keyframe; the model then writes only motion for that clip.
    Of later clips the first frame is left out, which repeats the one before.

    Args:
        prompts: With pictures or without, also side by side.
        clips: Of 24 frames each.

    Raises:
        ValueError: a prompt, a size or a number of clips that the model cannot do.
        ModelError: the model lacks a part.
    """
    settings = settings or GenerateSettings()
    tell = on_progress or silent
    if clips < 1:
        raise ValueError(f"a video has at least one clip, not {clips}")
    needed = [clips - bool(prompt.pictures) for prompt in prompts]
    sizes = keyframe_size(runtime, settings) if any(needed) else (0, 0), video_size(runtime, settings)
    scripts = _scripts(runtime, prompts, markers=True)
    _write_clips(runtime, scripts, prompts, clips, settings, tell)
    parts: list[list[Picture]] = [[] for _ in prompts]
    keyframes: list[list[Picture]] = [[] for _ in prompts]
    for clip in range(clips):
        painted = _keyframes(runtime, scripts, prompts, clip, parts, sizes[0], settings, tell)
        clip_orders = [
            ClipRequest(keyframe, script.motion[clip], prompt.seed, clip)
            for keyframe, script, prompt in zip(painted, scripts, prompts, strict=True)
        ]
        frames = animate(runtime, clip_orders, sizes[1], settings, partial(tell, f"clip {clip + 1} frames"))
        for row, (keyframe, video) in enumerate(zip(painted, frames, strict=True)):
            keyframes[row].append(keyframe)
            parts[row].append(video if clip == 0 else video[1:])
    return [
        GeneratedVideo(np.concatenate(part), pictures, script.visual, script.motion)
        for part, pictures, script in zip(parts, keyframes, scripts, strict=True)
    ]


def _scripts(runtime: Runtime, prompts: Sequence[Prompt], markers: bool) -> list[GeneratedTokens]:
    if not prompts:
        raise ValueError("there is no prompt")
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    codes: list[list[int]] = []
    if pictures:
        with runtime.use("visual_tokenizer") as tokenizer:
            codes = encode_pictures(pictures, tokenizer)
    text = runtime.model.text_tokenizer()
    scripts = []
    for prompt in prompts:
        own, codes = codes[: len(prompt.pictures)], codes[len(prompt.pictures) :]
        ids = prompt_ids(prompt, own, text, runtime.model.vocabulary, markers)
        scripts.append(GeneratedTokens(ids, generator(prompt.seed, "tokens")))
    return scripts


@contextlib.contextmanager
def _writer(runtime: Runtime, settings: GenerateSettings) -> Iterator[TokenGenerator]:
    model = runtime.model
    limits = settings.visual_limits(model.num_patches)
    with runtime.use("language_model") as language_model:
        yield TokenGenerator(language_model, model.vocabulary, model.motion_tokens, limits, settings)


def _write_clips(
    runtime: Runtime,
    scripts: Sequence[GeneratedTokens],
    prompts: Sequence[Prompt],
    clips: int,
    settings: GenerateSettings,
    tell: Progress,
) -> None:
    """Has the language model write all clips of all scripts."""
    with _writer(runtime, settings) as writer:
        writer.check_length(scripts, [clips - bool(prompt.pictures) for prompt in prompts], motions=clips)
        for clip in range(clips):
            given = [clip == 0 and bool(prompt.pictures) for prompt in prompts]
            unwritten = [script for script, has in zip(scripts, given, strict=True) if not has]
            if unwritten:
                name = f"clip {clip + 1} picture tokens"
                counted = partial(_count, tell, name, writer.visual_limits[1])
                writer.write_pictures(unwritten, settings.visual_guidance, counted)
            name = f"clip {clip + 1} motion tokens"
            writer.write_motion(scripts, given, partial(_count, tell, name, writer.motion_tokens))


def _keyframes(
    runtime: Runtime,
    scripts: Sequence[GeneratedTokens],
    prompts: Sequence[Prompt],
    clip: int,
    before: Sequence[Sequence[Picture]],
    size: tuple[int, int],
    settings: GenerateSettings,
    tell: Progress,
) -> list[Picture]:
    """The keyframe of a clip for each prompt: the given picture, or one painted from its codes."""
    pictures: list[Picture | None] = [
        prompt.pictures[-1] if clip == 0 and prompt.pictures else None for prompt in prompts
    ]
    rows = [row for row, picture in enumerate(pictures) if picture is None]
    if rows:
        orders = [
            KeyframeRequest(
                codes=scripts[row].visual[clip - bool(prompts[row].pictures)],
                seed=prompts[row].seed,
                clip=clip,
                last=before[row][-1][-1] if clip else None,
            )
            for row in rows
        ]
        painted = paint(runtime, orders, size, settings, partial(tell, f"clip {clip + 1} keyframe"))
        for row, picture in zip(rows, painted, strict=True):
            pictures[row] = picture
    return [picture for picture in pictures if picture is not None]


def paint(
    runtime: Runtime,
    orders: Sequence[KeyframeRequest],
    size: tuple[int, int],
    settings: GenerateSettings,
    on_step: OnStep | None = None,
) -> Picture:
    """Keyframes [batch, height, width, 3], fewer if `on_step` leaves some out.

    Args:
        orders: All with a frame before, or all without.
        size: Height and width in pixels.
    """
    with runtime.use("keyframe_detokenizer") as detokenizer:
        conditions = detokenizer.decode_codes([torch.tensor(order.codes, dtype=torch.long) for order in orders])
        start = _start(detokenizer, conditions, orders, size, settings)
        generators = [generator(order.seed, f"keyframe steps {order.clip}") for order in orders]
        steps, guidance = settings.keyframe_steps, settings.keyframe_guidance
        return detokenizer.decode(detokenizer.sample(conditions, start, steps, guidance, generators, on_step))


def _start(
    detokenizer: KeyframeDetokenizer,
    conditions: Conditions,
    orders: Sequence[KeyframeRequest],
    size: tuple[int, int],
    settings: GenerateSettings,
) -> Start:
    """Where keyframes start: at noise, or near the last frame of the clip before."""
    steps, rate = settings.keyframe_steps, settings.constraint_rate
    generators = [generator(order.seed, f"keyframe {order.clip}") for order in orders]
    last = [order.last for order in orders if order.last is not None]
    if not last or settings.constraint == "none":
        return detokenizer.noise(*size, steps, generators)
    latents = detokenizer.encode(np.stack(last), *size)
    if settings.constraint == "inversion":
        return detokenizer.inverted_start(latents, conditions, rate, steps)
    noise = draw_noise(tuple(latents.shape[1:]), generators, latents)
    return detokenizer.noised_start(latents, noise, rate, steps)


def animate(
    runtime: Runtime,
    orders: Sequence[ClipRequest],
    size: tuple[int, int],
    settings: VideoSettings,
    on_step: OnStep | None = None,
) -> Picture:
    """Frames [batch, time, height, width, 3] of clips, fewer if `on_step` leaves some out.

    Args:
        size: Height and width in pixels.
    """
    latent_size = runtime.loaded("video_detokenizer").latent_size(*size)
    with runtime.use("motion_tokenizer") as tokenizer, torch.inference_mode():
        codes = torch.tensor([order.motion for order in orders], device=runtime.device)
        motion = tokenizer.decode_to(codes, *latent_size)
    pictures = np.stack([resize_picture(order.keyframe, *size) for order in orders])
    generators = [generator(order.seed, f"video {order.clip}") for order in orders]
    detokenizer: VideoDetokenizer
    with runtime.use("video_detokenizer") as detokenizer:
        return detokenizer.generate(pictures, motion, generators, settings, on_step)


def keyframe_size(runtime: Runtime, settings: GenerateSettings) -> tuple[int, int]:
    """(height, width) in pixels. Raises ValueError, before anything is written, for one that the model cannot do."""
    sizes = runtime.model.sizes
    size = settings.height or sizes.keyframe_height, settings.width or sizes.keyframe_width
    check_size(*size, runtime.loaded("keyframe_detokenizer").pixel_multiple)
    return size


def video_size(runtime: Runtime, settings: GenerateSettings) -> tuple[int, int]:
    """As `keyframe_size`."""
    sizes = runtime.model.sizes
    size = settings.video_height or sizes.video_height, settings.video_width or sizes.video_width
    check_size(*size, runtime.loaded("video_detokenizer").pixel_multiple)
    return size


def _count(tell: Progress, stage: str, total: int, done: int) -> None:
    tell(stage, done, total)


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody listens to."""
