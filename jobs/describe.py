"""Ask a question about images or videos.

The answer about a single file is printed while it is generated. Several files are asked about in one batch.
"""

from collections.abc import Sequence

from rich.console import Console

from videolavit.generation.describe import DescribeSettings, describe, ignore_text
from videolavit.generation.runtime import RuntimeSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import JobParser, foreign, pick, user_errors
from .models import add_model_options, print_message


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the answers; exits with status 2 on a mistake of the user."""
    options = _parser().parse(argv)
    out = Console(highlight=False, soft_wrap=True)
    single = len(options.path) == 1
    with user_errors(ValueError, MediaError, ModelError):
        summary = describe(
            options.path,
            options.model,
            options.question,
            max_clips=options.max_clips,
            settings=pick(DescribeSettings, options),
            placement=pick(RuntimeSettings, options),
            on_text=(lambda index, text: out.print(foreign(text, lines=True), end="")) if single else ignore_text,
            on_progress=print_message,
        )
    if single:
        out.print()
        return
    for path, text in zip(options.path, summary.answers, strict=True):
        out.print(foreign(f"{path}: {text}", lines=True))


def _parser() -> JobParser:
    parser = JobParser("describe", __doc__)
    parser.add_argument("path", type=str, nargs="+", help="images or videos; local, s3://, https:// or hf://")
    parser.add_argument("--question", type=str, default="Describe it in detail.", help="question about each file")
    parser.add_argument("--max_clips", type=int, default=8, help="largest number of clips of a video, of 4 s each")
    add_model_options(parser)
    parser.add_class_arguments(DescribeSettings)
    return parser


if __name__ == "__main__":
    main()
