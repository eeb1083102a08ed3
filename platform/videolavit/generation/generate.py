"""Generation of pictures and videos from prompts: the language model generates codes, the detokenizers pixels."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videolavit.files import write_beside
from videolavit.progress import OnProgress, ignore_progress

from .execute import execute
from .inputs import check_output, load_runtime, read_picture
from .output import model_hash, provenance, save_picture, save_video
from .program import GeneratedVideo, picture_program, video_program
from .prompts import EncodedPart, Picture, Prompt, encode_pictures, parse_prompt
from .runtime import MODEL_PARTS, Runtime, RuntimeSettings
from .settings import GenerateSettings, settings_of_model

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
        settings: Sampling, guidance, denoising steps and sizes; None for those that suit the model.
        placement: Device and data type of the model.
        on_progress: Receives the steps of each stage, and a message if the weights are untrained.

    Raises:
        ValueError: a prompt, a setting or an output that is impossible.
        MediaError: an image cannot be read.
        ModelError: the model cannot be loaded, or lacks a part.
        OSError: a file cannot be written.
    """
    texts = prompts or [""]
    pictures = [read_picture(path) for path in images]
    parsed = [parse_prompt(text, pictures, seed) for text in texts]
    files = _output_files(kind, texts, seed, output)
    runtime = load_runtime(model, placement, on_progress)
    settings = settings or settings_of_model(runtime.model, GenerateSettings)
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
    settings = settings or settings_of_model(runtime.model, GenerateSettings)
    encoded = _encode_prompts(runtime, prompts)
    programs = [picture_program(parts, prompt.seed) for parts, prompt in zip(encoded, prompts, strict=True)]
    _, results = execute(runtime, programs, settings, on_progress)
    return [results[program.steps[-1]] for program in programs]


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
    settings = settings or settings_of_model(runtime.model, GenerateSettings)
    if clips < 1:
        raise ValueError(f"a video has at least one clip, not {clips}")
    programs = [
        video_program(parts, prompt.seed, clips, settings.constraint, prompt.pictures[-1] if prompt.pictures else None)
        for parts, prompt in zip(_encode_prompts(runtime, prompts), prompts, strict=True)
    ]
    codes, results = execute(runtime, programs, settings, on_progress)
    return [program.video(own, results) for program, own in zip(programs, codes, strict=True)]


def _encode_prompts(runtime: Runtime, prompts: Sequence[Prompt]) -> list[list[EncodedPart]]:
    """Parts of each prompt, with the codes of its pictures in their places."""
    if not prompts:
        raise ValueError("there is no prompt")
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    codes: Iterator[list[int]] = iter(())
    if pictures:
        with runtime.use("visual_tokenizer") as tokenizer:
            codes = iter(encode_pictures(pictures, tokenizer))
    return [[part if isinstance(part, str) else next(codes) for part in prompt.parts] for prompt in prompts]
