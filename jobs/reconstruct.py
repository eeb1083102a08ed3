"""Send a video through its tokens and back, and compare.

Writes the reconstruction, and a video of the original beside it; prints PSNR and SSIM.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from videolavit.generation.output import model_hash, provenance, side_by_side
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct_clips
from videolavit.generation.runtime import Runtime
from videolavit.media import MediaError, Mp4Writer
from videolavit.models.network import ModelError

from .common import JobParser, pick, user_errors
from .models import add_model_options, naming, new_file, stages, start_runtime

RECONSTRUCT_PARTS = ("visual_tokenizer", "motion_tokenizer", "keyframe_detokenizer", "video_detokenizer")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes two videos; exits with 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError, MediaError, ModelError, OSError):
        settings = pick(ReconstructSettings, options)
        file = new_file(options.output or f"{Path(options.video).stem}-reconstructed.mp4", ".mp4")
        beside = file.with_name(f"{file.stem}-side-by-side.mp4")
        runtime = start_runtime(options)
        with (
            naming(options.video),
            _writers(runtime, [file, beside], options.video, settings) as (ours, both),
            stages() as tell,
        ):
            clips = []
            for clip in reconstruct_clips(runtime, options.video, settings, tell):
                for frame, original in zip(clip.frames, clip.original, strict=True):
                    ours.add(frame)
                    both.add(side_by_side(original, frame))
                clips.append((clip.psnr, clip.ssim, len(clip.frames), len(clip.visual), len(clip.motion)))
    _print(clips, options.video)
    for path in (file, beside):
        Console(highlight=False).print(str(path), soft_wrap=True)


def _parser() -> JobParser:
    parser = JobParser("reconstruct", __doc__)
    parser.add_argument("video", type=str, help="video file")
    parser.add_argument("--output", type=str | None, help=".mp4 file; default: NAME-reconstructed.mp4")
    add_model_options(parser)
    parser.add_class_arguments(ReconstructSettings)
    return parser


@contextlib.contextmanager
def _writers(
    runtime: Runtime, files: list[Path], video: str, settings: ReconstructSettings
) -> Iterator[list[Mp4Writer]]:
    """Writers of the files; a run that fails leaves none of them behind."""
    said = provenance(
        f"reconstruction of {Path(video).name}", settings.seed, model_hash(runtime.model, RECONSTRUCT_PARTS)
    )
    unfinished = [file.with_name(f".{file.name}") for file in files]
    try:
        with contextlib.ExitStack() as stack:
            for file in unfinished:
                file.parent.mkdir(parents=True, exist_ok=True)
            yield [stack.enter_context(Mp4Writer(file, settings.fps, metadata=said)) for file in unfinished]
        for part, file in zip(unfinished, files, strict=True):
            part.replace(file)
    finally:
        for part in unfinished:
            part.unlink(missing_ok=True)


def _print(clips: list[tuple[float, float, int, int, int]], video: str) -> None:
    table = Table("clip", "frames", "visual tokens", "motion tokens", "PSNR, dB", "SSIM", title=Path(video).name)
    for number, (psnr, ssim, frames, visual, motion) in enumerate(clips, 1):
        table.add_row(str(number), str(frames), str(visual), str(motion), f"{psnr:.2f}", f"{ssim:.3f}")
    weights = [frames for _, _, frames, _, _ in clips]
    psnr, ssim = (np.average([clip[place] for clip in clips], weights=weights) for place in (0, 1))
    table.add_section()
    table.add_row("mean", str(sum(weights)), "", "", f"{psnr:.2f}", f"{ssim:.3f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
