"""Generation of pictures and videos from prompts: the language model generates codes, the detokenizers pixels."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from videolavit.files import write_beside
from videolavit.progress import OnProgress, Progress, ignore_progress

from .detokenize import ClipRequest, KeyframeRequest, generate_clips, generate_keyframes, keyframe_size, video_size
from .inputs import check_output, load_runtime, read_picture
from .output import model_hash, provenance, save_picture, save_video
from .prompts import Picture, Prompt, encode_pictures, parse_prompt, prompt_ids
from .runtime import MODEL_PARTS, Runtime, RuntimeSettings
from .settings import GenerateSettings, generator
from .token_generator import GeneratedTokens, TokenGenerator

MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi")
"""Suffixes by which an output path is recognised as a file; any other path is a folder."""

MAX_NAME_LENGTH = 40
"""Largest number of characters of a prompt in a file name."""


@dataclass(frozen=True)
class GenerateSummary:
    """Result of `generate`.

    Args:
        files: File of each prompt, in order.
        model_hash: SHA-256 of the model's weights, as in the metadata of the files.
        model_is_trained: False if the weights are untrained, so that the files are meaningless.
    """

    files: tuple[Path, ...]
    model_hash: str
    model_is_trained: bool


def generate(
    kind: Literal["image", "video"],
    prompts: Sequence[str],
    model: str | os.PathLike[str],
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    clips: int = 1,
    seed: int = 0,
    output: str | os.PathLike[str] = "generated",
    settings: GenerateSettings | None = None,
    placement: RuntimeSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> GenerateSummary:
    """Generates a picture or a video for each prompt in one batch, and writes them to files.

    The files carry the prompt, the seed and the model's hash as metadata. A call that fails leaves no file behind.

    Args:
        kind: `image` for PNG files, `video` for mp4 files.
        prompts: Texts. Each `<image>` in a text stands for one of the images; without it the images come first. No
            text at all is one empty prompt, for images alone.
        model: Model folder, or name of a preset.
        images: Files or URLs of the pictures for every prompt, in order. A video starts from the last one.
        clips: Clips of a video, of 24 frames each.
        seed: Seed of all random numbers.
        output: Folder for files named after their prompts; or a single .png or .mp4 file.
        settings: Sampling, guidance, denoising steps and sizes.
        placement: Device and data type of the model.
        on_progress: Receives the steps of each stage, and a message if the weights are untrained.

    Raises:
        ValueError: a prompt, a setting or an output that is impossible.
        MediaError: an image cannot be read.
        ModelError: the model cannot be loaded, or lacks a part.
        OSError: a file cannot be written.
    """
    settings = settings or GenerateSettings()
    texts = prompts or [""]
    pictures = [read_picture(path) for path in images]
    parsed = [parse_prompt(text, pictures, seed) for text in texts]
    files = _output_files(kind, texts, seed, output)
    runtime = load_runtime(model, placement, on_progress)
    if kind == "image":
        made = generate_images(runtime, parsed, settings, on_progress)
        more = {}
    else:
        made = [video.frames for video in generate_videos(runtime, parsed, clips, settings, on_progress)]
        more = {"clips": clips}
    weights = model_hash(runtime.model, [part for part in MODEL_PARTS if part != "understanding"])
    with write_beside(*files) as temporary:
        for prompt, pixels, file, target in zip(parsed, made, temporary, files, strict=True):
            metadata = provenance(prompt.text, prompt.seed, weights, **more)
            try:
                if kind == "image":
                    save_picture(pixels, file, metadata)
                else:
                    save_video(pixels, file, settings.fps, metadata)
            except OSError as error:
                raise OSError(f"cannot write {target}: {error.strerror or error}") from None
    return GenerateSummary(tuple(files), weights, runtime.model.is_trained)


def _output_files(
    kind: Literal["image", "video"], texts: Sequence[str], seed: int, output: str | os.PathLike[str]
) -> list[Path]:
    """File of each prompt. Raises ValueError for an output that is impossible."""
    suffix = ".png" if kind == "image" else ".mp4"
    folder = Path(output)
    if folder.suffix.lower() in MEDIA_SUFFIXES and not folder.is_dir():
        if len(texts) > 1:
            raise ValueError(f"{len(texts)} prompts need a folder as output, not the single file {folder}")
        return [check_output(folder, suffix)]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output {folder} exists and is not a folder; name a folder, or a {suffix} file")
    width = len(str(len(texts)))
    files = []
    for number, text in enumerate(texts, 1):
        name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_NAME_LENGTH].strip("-") or "picture"
        files.append(folder / f"{number:0{width}d}-{name}-seed{seed}{suffix}")
    return files


@dataclass(frozen=True, eq=False)
class GeneratedVideo:
    """Generated video.

    Args:
        frames: uint8 [time, height, width, 3].
        keyframes: Keyframe of each clip: a generated one, or the picture of the prompt.
        visual: Visual codes of each generated keyframe.
        motion: Motion codes of each clip.
    """

    frames: Picture
    keyframes: list[Picture]
    visual: list[list[int]]
    motion: list[list[int]]


def generate_images(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    settings: GenerateSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[Picture]:
    """Generates a picture for each prompt, in one batch; each is the picture that its prompt alone would give.

    Raises:
        ValueError: a prompt or a size that the model cannot handle.
        ModelError: the model lacks a part.
    """
    settings = settings or GenerateSettings()
    size = keyframe_size(runtime, settings)
    sequences = _tokenize_prompts(runtime, prompts, markers=False)
    with _token_generator(runtime, settings) as tokens:
        tokens.check_length(sequences, [1] * len(sequences), motions=0)
        for mixed in (False, True):  # prompts with pictures have a guidance of their own
            group = [one for one, prompt in zip(sequences, prompts, strict=True) if bool(prompt.pictures) == mixed]
            if group:
                guidance = settings.mixed_guidance if mixed else settings.visual_guidance
                on_step = _decode_progress(on_progress, "picture tokens", tokens.visual_limits[1])
                tokens.generate_pictures(group, guidance, on_step)
    requests = [
        KeyframeRequest(sequence.visual[0], prompt.seed) for sequence, prompt in zip(sequences, prompts, strict=True)
    ]
    on_denoised = _denoising_progress(on_progress, "clip 1 keyframe")
    return list(generate_keyframes(runtime, requests, size, settings, on_denoised))


def generate_videos(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    clips: int = 1,
    settings: GenerateSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[GeneratedVideo]:
    """Generates a video for each prompt, in one batch; each is the video that its prompt alone would give.

    The last picture of a prompt is the first keyframe of its video; the model then generates only the motion of that
    clip. The first frame of each later clip repeats the last frame before it, and is left out.

    Args:
        clips: Clips of each video, of 24 frames each.

    Raises:
        ValueError: a prompt, a size or a number of clips that the model cannot handle.
        ModelError: the model lacks a part.
    """
    settings = settings or GenerateSettings()
    if clips < 1:
        raise ValueError(f"a video has at least one clip, not {clips}")
    given = [bool(prompt.pictures) for prompt in prompts]
    # before anything is generated, so that a size that is impossible costs no time
    size_of_keyframes = keyframe_size(runtime, settings) if clips > 1 or not all(given) else (0, 0)
    size_of_videos = video_size(runtime, settings)
    sequences = _tokenize_prompts(runtime, prompts, markers=True)
    _generate_tokens(runtime, sequences, given, clips, settings, on_progress)
    parts: list[list[Picture]] = [[] for _ in prompts]
    keyframes: list[list[Picture]] = [[] for _ in prompts]
    for clip in range(clips):
        rows = [row for row in range(len(prompts)) if clip or not given[row]]
        pictures = {row: prompts[row].pictures[-1] for row in range(len(prompts)) if row not in rows}
        if rows:
            keyframe_requests = [
                KeyframeRequest(
                    codes=sequences[row].visual[clip - given[row]],
                    seed=prompts[row].seed,
                    clip=clip,
                    last=parts[row][-1][-1] if clip else None,
                )
                for row in rows
            ]
            on_step = _denoising_progress(on_progress, f"clip {clip + 1} keyframe")
            generated = generate_keyframes(runtime, keyframe_requests, size_of_keyframes, settings, on_step)
            pictures |= dict(zip(rows, generated, strict=True))
        clip_requests = [
            ClipRequest(pictures[row], sequences[row].motion[clip], prompt.seed, clip)
            for row, prompt in enumerate(prompts)
        ]
        on_step = _denoising_progress(on_progress, f"clip {clip + 1} frames")
        for row, frames in enumerate(generate_clips(runtime, clip_requests, size_of_videos, settings, on_step)):
            keyframes[row].append(pictures[row])
            parts[row].append(frames if clip == 0 else frames[1:])
    return [
        GeneratedVideo(np.concatenate(parts[row]), keyframes[row], sequence.visual, sequence.motion)
        for row, sequence in enumerate(sequences)
    ]


def _tokenize_prompts(runtime: Runtime, prompts: Sequence[Prompt], markers: bool) -> list[GeneratedTokens]:
    """Starts a token sequence for each prompt, with the codes of its pictures."""
    if not prompts:
        raise ValueError("there is no prompt")
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    codes: list[list[int]] = []
    if pictures:
        with runtime.use("visual_tokenizer") as tokenizer:
            codes = encode_pictures(pictures, tokenizer)
    text = runtime.model.text_tokenizer()
    sequences = []
    for prompt in prompts:
        own, codes = codes[: len(prompt.pictures)], codes[len(prompt.pictures) :]
        ids = prompt_ids(prompt, own, text, runtime.model.vocabulary, markers)
        sequences.append(GeneratedTokens(ids, generator(prompt.seed, "tokens")))
    return sequences


@contextlib.contextmanager
def _token_generator(runtime: Runtime, settings: GenerateSettings) -> Iterator[TokenGenerator]:
    model = runtime.model
    limits = settings.visual_limits(model.num_patches)
    with runtime.use("language_model") as language_model:
        yield TokenGenerator(language_model, model.vocabulary, model.motion_tokens, limits, settings)


def _generate_tokens(
    runtime: Runtime,
    sequences: Sequence[GeneratedTokens],
    given: Sequence[bool],
    clips: int,
    settings: GenerateSettings,
    on_progress: OnProgress,
) -> None:
    """Generates the picture and the motion of each clip after each prompt.

    Args:
        given: For each prompt, whether its last picture is the first keyframe.
    """
    with _token_generator(runtime, settings) as tokens:
        tokens.check_length(sequences, [clips - one for one in given], motions=clips)
        for clip in range(clips):
            needs_picture = [sequence for sequence, one in zip(sequences, given, strict=True) if clip or not one]
            if needs_picture:
                stage = f"clip {clip + 1} picture tokens"
                on_step = _decode_progress(on_progress, stage, tokens.visual_limits[1])
                tokens.generate_pictures(needs_picture, settings.visual_guidance, on_step)
            stage = f"clip {clip + 1} motion tokens"
            on_step = _decode_progress(on_progress, stage, tokens.motion_tokens)
            tokens.generate_motion(sequences, [clip == 0 and one for one in given], on_step)


def _decode_progress(on_progress: OnProgress, stage: str, total: int) -> Callable[[int], None]:
    """Callback that reports the decode steps of a stage."""
    return lambda done: on_progress(Progress(stage, done, total))


def _denoising_progress(on_progress: OnProgress, stage: str) -> Callable[[int, int], None]:
    """Callback that reports the denoising steps of a stage."""
    return lambda done, total: on_progress(Progress(stage, done, total))
