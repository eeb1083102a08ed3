"""Generate pictures or videos from texts, pictures, or both.

`<image>` marks the place of a picture in a prompt; without it the pictures come first. A video starts from the last
picture. Several prompts are generated in one batch; each gives the same result as alone.
"""

from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from videolavit.generation.generate import generate
from videolavit.generation.runtime import RuntimeSettings
from videolavit.generation.settings import GenerateSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import JobParser, foreign, pick, user_errors
from .models import add_model_options, parse_for_model
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a file for each prompt; exits with status 2 on a mistake of the user."""
    options = parse_for_model(_parser(), argv, GenerateSettings)
    with user_errors(ValueError, MediaError, ModelError, OSError), show_progress() as on_progress:
        summary = generate(
            options.kind,
            options.prompt,
            options.model,
            images=options.image,
            clips=options.clips,
            seed=options.seed,
            output=options.output,
            settings=pick(GenerateSettings, options),
            placement=pick(RuntimeSettings, options),
            on_progress=on_progress,
        )
    for file in summary.files:
        Console(highlight=False).print(foreign(file), soft_wrap=True)


def _parser() -> JobParser:
    parser = JobParser("generate", __doc__)
    parser.add_argument("kind", type=Literal["image", "video"], help="kind of files to generate")
    parser.add_argument("--prompt", type=str, nargs="+", default=[], help="one or more texts")
    parser.add_argument("--image", type=str, nargs="+", default=[], help="pictures for the prompts, in order")
    parser.add_argument("--clips", type=int, default=1, help="number of clips of a video, of 24 frames each")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    parser.add_argument("--output", type=str, default="generated", help="folder, or a .png or .mp4 file")
    add_model_options(parser)
    parser.add_class_arguments(GenerateSettings)
    return parser


if __name__ == "__main__":
    main()
