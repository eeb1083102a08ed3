"""Generate pictures or videos from texts, pictures, or both.

A prompt may say where its pictures go by `<image>`; without it they come first. A video starts from the last picture.
Several prompts are done in one batch; each gives what it would give alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from videolavit.generation.generate import generate_images, generate_videos
from videolavit.generation.output import model_hash, provenance, save_picture, save_video
from videolavit.generation.prompts import Picture, Prompt
from videolavit.generation.runtime import MODEL_PARTS, Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import JobParser, fail, pick, user_errors
from .models import add_model_options, new_file, read_picture, stages, start_runtime

MARKER = "<image>"
SUFFIXES = {"image": ".png", "video": ".mp4"}
FILES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi")
"""An --output that ends so is a file, and must be of the kind that is made; anything else is a folder."""

NAME_LENGTH = 40


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a file for each prompt; exits with 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError, MediaError, ModelError, OSError):
        settings = pick(GenerateSettings, options)
        pictures = [read_picture(path) for path in options.image]
        texts = options.prompt or [""]
        prompts = [Prompt(_parts(text, pictures), options.seed) for text in texts]
        files = _files(options, texts)
        runtime = start_runtime(options)
        (_make_images if options.kind == "image" else _make_videos)(runtime, prompts, files, options, settings)


def _parser() -> JobParser:
    parser = JobParser("generate", __doc__)
    parser.add_argument("kind", type=str, choices=["image", "video"], help="what to make")
    parser.add_argument("--prompt", type=str, nargs="+", default=[], help="one text or more")
    parser.add_argument("--image", type=str, nargs="+", default=[], help="pictures for the prompts, in order")
    parser.add_argument("--clips", type=int, default=1, help="clips of a video, of 24 frames each")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is drawn")
    parser.add_argument("--output", type=str, default="generated", help="folder, or a .png or .mp4 file")
    add_model_options(parser)
    parser.add_class_arguments(GenerateSettings)
    return parser


def _parts(text: str, pictures: Sequence[Picture]) -> tuple[str | Picture, ...]:
    """Texts and pictures in order. Raises ValueError if the markers and the pictures do not agree in number."""
    texts = text.split(MARKER)
    if len(texts) == 1:
        return (*pictures, *([text] if text else []))
    if len(texts) - 1 != len(pictures):
        raise ValueError(f"the prompt has {len(texts) - 1} times {MARKER}, and --image names {len(pictures)} pictures")
    parts: list[str | Picture] = [texts[0]]
    for picture, following in zip(pictures, texts[1:], strict=True):
        parts += [picture, following]
    return tuple(part for part in parts if not isinstance(part, str) or part)


def _files(options: Any, texts: Sequence[str]) -> list[Path]:
    suffix = SUFFIXES[options.kind]
    folder = Path(options.output)
    if folder.suffix.lower() in FILES and not folder.is_dir():
        if len(texts) > 1:
            fail(f"{len(texts)} prompts need a folder as --output, not one file")
        return [new_file(options.output, suffix)]
    if folder.exists() and not folder.is_dir():
        fail(f"--output {folder} is a file that is there already; name a folder, or a {suffix} file")
    width = len(str(len(texts)))
    return [
        folder / f"{number:0{width}d}-{_slug(text)}-seed{options.seed}{suffix}" for number, text in enumerate(texts, 1)
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_LENGTH].strip("-") or "picture"


def _make_images(
    runtime: Runtime, prompts: list[Prompt], files: list[Path], options: Any, settings: GenerateSettings
) -> None:
    with stages() as tell:
        pictures = generate_images(runtime, prompts, settings, tell)
    model = _hash(runtime)
    for prompt, picture, file in zip(prompts, pictures, files, strict=True):
        save_picture(picture, file, provenance(prompt.text, prompt.seed, model))
        _say(file)


def _make_videos(
    runtime: Runtime, prompts: list[Prompt], files: list[Path], options: Any, settings: GenerateSettings
) -> None:
    with stages() as tell:
        videos = generate_videos(runtime, prompts, options.clips, settings, tell)
    model = _hash(runtime)
    for prompt, video, file in zip(prompts, videos, files, strict=True):
        save_video(video.frames, file, settings.fps, provenance(prompt.text, prompt.seed, model, clips=options.clips))
        _say(file)


def _hash(runtime: Runtime) -> str:
    return model_hash(runtime.model, [unit for unit in MODEL_PARTS if unit != "understanding"])


def _say(file: Path) -> None:
    Console(highlight=False).print(str(file), soft_wrap=True)


if __name__ == "__main__":
    main()
