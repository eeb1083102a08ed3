"""Reconstruct a video from its tokens and compare it with the original.

Writes the reconstruction, and a video with the original beside it; prints PSNR and SSIM.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from videolavit.generation.reconstruct import ReconstructionSummary, ReconstructSettings, reconstruct
from videolavit.generation.runtime import RuntimeSettings
from videolavit.media import MediaError
from videolavit.models.network import ModelError

from .common import JobParser, foreign, pick, user_errors
from .models import add_model_options, parse_for_model
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Writes two videos; exits with status 2 on a mistake of the user."""
    options = parse_for_model(_parser(), argv, ReconstructSettings)
    with user_errors(ValueError, MediaError, ModelError, OSError), show_progress() as on_progress:
        summary = reconstruct(
            options.video,
            options.model,
            options.output,
            settings=pick(ReconstructSettings, options),
            placement=pick(RuntimeSettings, options),
            on_progress=on_progress,
        )
    print_reconstruction(summary, Path(options.video).name)


def _parser() -> JobParser:
    parser = JobParser("reconstruct", __doc__)
    parser.add_argument("video", type=str, help="video file")
    parser.add_argument("--output", type=str | None, help=".mp4 file; default: NAME-reconstructed.mp4")
    add_model_options(parser)
    parser.add_class_arguments(ReconstructSettings)
    return parser


def print_reconstruction(summary: ReconstructionSummary, title: str) -> None:
    """Prints a table of the clips, and the files."""
    out = Console(highlight=False)
    table = Table("clip", "frames", "visual tokens", "motion tokens", "PSNR, dB", "SSIM", title=foreign(title))
    for number, clip in enumerate(summary.clips, 1):
        counts = (number, clip.frames, clip.visual_tokens, clip.motion_tokens)
        table.add_row(*map(str, counts), f"{clip.psnr:.2f}", f"{clip.ssim:.3f}")
    table.add_section()
    table.add_row("mean", str(summary.frames), "", "", f"{summary.psnr:.2f}", f"{summary.ssim:.3f}")
    out.print(table)
    for path in (summary.video, summary.side_by_side):
        out.print(foreign(path), soft_wrap=True)


if __name__ == "__main__":
    main()
