"""Options and messages of the jobs that run a model."""

import sys
from collections.abc import Sequence
from typing import Any

from videolavit.generation.runtime import RuntimeSettings
from videolavit.generation.settings import generation_defaults
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.models.video_detokenizer import VideoSettings
from videolavit.progress import Progress

from .common import JobParser, console, foreign, user_errors

MODEL_HELP = "model folder; shapes, a small trained model; or, untrained, a preset: tiny, mini, small, video-lavit-7b"


def add_model_options(parser: JobParser) -> None:
    """Adds `--model` and the options of its placement."""
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_class_arguments(RuntimeSettings)


def parse_for_model(parser: JobParser, args: Sequence[str] | None, kind: type[VideoSettings], prefix: str = "") -> Any:
    """Parses a command line whose settings of generation, where none are given, are those that suit its model.

    Args:
        parser: Parser with the options of the settings, and with `--model`.
        args: Words of the command line; None for those of the process.
        kind: Type of the settings.
        prefix: Beginning of the names of their options.
    """
    words = sys.argv[1:] if args is None else list(args)
    first = [word for word in words if not word.startswith(("--print-config", "--print_config"))]
    try:
        model = ModelFolder(parser.parse(first).model)
    except ModelError:
        return parser.parse(words)  # the job itself names a model that is missing, if it needs one
    with user_errors(ModelError):
        suited = generation_defaults(model, kind)
    parser.set_defaults({prefix + name: value for name, value in suited.items()})
    return parser.parse(words)


def print_message(progress: Progress) -> None:
    """Prints the message of a progress report, such as a warning, and ignores its counts."""
    if progress.message:
        console.print(foreign(progress.message, "yellow"), soft_wrap=True)
