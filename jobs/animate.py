"""Animate a picture with the motion of a video.

The picture gives what is seen, the video how it moves: its motion tokens are decoded over the picture as keyframe.
"""

from collections.abc import Sequence

from rich.console import Console

from videolavit.generation.animate import AnimateSettings, animate
from videolavit.generation.runtime import RuntimeSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import JobParser, foreign, pick, user_errors
from .models import add_model_options, parse_for_model
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a video; exits with status 2 on a mistake of the user."""
    options = parse_for_model(_parser(), argv, AnimateSettings)
    with user_errors(ValueError, MediaError, ModelError, OSError), show_progress() as on_progress:
        summary = animate(
            options.picture,
            options.video,
            options.model,
            options.output,
            settings=pick(AnimateSettings, options),
            placement=pick(RuntimeSettings, options),
            on_progress=on_progress,
        )
    Console(highlight=False).print(foreign(summary.video), soft_wrap=True)


def _parser() -> JobParser:
    parser = JobParser("animate", __doc__)
    parser.add_argument("picture", type=str, help="picture; or a video, whose first keyframe is taken")
    parser.add_argument("video", type=str, help="video whose motion is taken")
    parser.add_argument(
        "--output", type=str | None, help=".mp4 file; default: NAME-animated.mp4, of the picture's name"
    )
    add_model_options(parser)
    parser.add_class_arguments(AnimateSettings)
    return parser


if __name__ == "__main__":
    main()
