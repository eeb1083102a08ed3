"""Ask a question about images or videos; the answer is written as it is made.

Several files are asked about in one batch.
"""

from collections.abc import Sequence

from rich.console import Console

from videolavit.generation.describe import DescribeSettings, Question, answer, stream_answers
from videolavit.generation.prompts import Picture
from videolavit.media import Clip, DecomposeSettings, MediaError, decompose
from videolavit.models.network import ModelError
from videolavit.records.pictures import NotAnImage
from videolavit.records.storage import StorageSettings, open_source

from .common import JobParser, pick, user_errors
from .models import add_model_options, naming, read_picture, start_runtime


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the answers; exits with 2 on a user's mistake."""
    options = _parser().parse(argv)
    out = Console(highlight=False, soft_wrap=True)
    with user_errors(ValueError, MediaError, ModelError):
        settings = pick(DescribeSettings, options)
        about = [_read(path, options.max_clips) for path in options.path]
        runtime = start_runtime(options)
        questions = [Question(options.question, one) for one in about]
        if len(questions) == 1:
            for _, text in stream_answers(runtime, questions, settings):
                out.print(text, end="", markup=False)
            out.print()
            return
        for path, text in zip(options.path, answer(runtime, questions, settings), strict=True):
            out.print(f"{path}: {text}", markup=False)


def _parser() -> JobParser:
    parser = JobParser("describe", __doc__)
    parser.add_argument("path", type=str, nargs="+", help="images or videos; local or s3://")
    parser.add_argument("--question", type=str, default="Describe it in detail.", help="what to ask")
    parser.add_argument("--max_clips", type=int, default=8, help="clips of a video that are looked at, of 4 s each")
    add_model_options(parser)
    parser.add_class_arguments(DescribeSettings)
    return parser


def _read(path: str, max_clips: int) -> Picture | list[Clip]:
    """An image, or else the clips of a video as the model was tuned on. Raises MediaError."""
    try:
        return read_picture(path)
    except NotAnImage:
        with naming(path), open_source(path, StorageSettings()) as file:
            return list(decompose(file, DecomposeSettings(policy="eval", max_clips=max_clips)))


if __name__ == "__main__":
    main()
