"""Options and messages of the jobs that run a model."""

from videolavit.generation.runtime import RuntimeSettings
from videolavit.progress import Progress

from .common import JobParser, console, foreign

MODEL_HELP = "model folder, or a preset with untrained weights: tiny, small, video-lavit-7b"


def add_model_options(parser: JobParser) -> None:
    """Adds `--model` and the options of its placement."""
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_class_arguments(RuntimeSettings)


def print_message(progress: Progress) -> None:
    """Prints the message of a progress report, such as a warning, and ignores its counts."""
    if progress.message:
        console.print(foreign(progress.message, "yellow"), soft_wrap=True)
