"""Render a captioned corpus of moving shapes with known motion.

The output folder gets `videos/*.mp4` and `manifest.jsonl`, which `videolavit decompose --input` reads: file, caption
and the true motion of every shape. Video number i depends on the seed and the settings only, so running the command
again with a larger number adds videos. The manifest is written last: it lists complete videos of one seed and one set
of settings. With `--questions` there is also `questions.jsonl`, which `videolavit train language-model` reads as
conversations.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from videolavit.records.storage import StorageError, StorageSettings
from videolavit.synth import QUESTIONS, SynthSettings, render_corpus

from .common import JobParser, add_storage_options, foreign, pick, user_errors
from .progress import show_progress


def main(argv: Sequence[str] | None = None) -> None:
    """Renders the corpus; exits with status 2 on a user's mistake."""
    parser = JobParser("synth", __doc__)
    parser.add_argument("--output", type=str, required=True, help="folder or s3:// prefix for the corpus")
    parser.add_argument("--videos", type=int, required=True, help="number of videos")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes; another seed gives other videos")
    parser.add_argument(
        "--questions", action="store_true", help=f"write {QUESTIONS} as well: conversations in LLaVA's format"
    )
    parser.add_class_arguments(SynthSettings)
    add_storage_options(parser)
    options = parser.parse(argv)
    started = time.monotonic()
    with user_errors(ValueError, StorageError, OSError), show_progress() as on_progress:
        settings = pick(SynthSettings, options)
        corpus = render_corpus(
            options.output,
            options.videos,
            settings,
            seed=options.seed,
            questions=options.questions,
            storage=StorageSettings(options.s3_endpoint),
            on_progress=on_progress,
        )
    table = Table(title=foreign(f"corpus {corpus.url}"), show_header=False)
    table.add_row("videos", f"{corpus.num_videos:,}")
    table.add_row("shapes", f"{corpus.num_shapes:,}")
    table.add_row("frame", f"{settings.width} x {settings.height} pixels, {settings.fps} frames per second")
    table.add_row("video", f"{corpus.video_seconds / 3600:.3f} h")
    table.add_row("rendered in", f"{time.monotonic() - started:.1f} s")
    stdout = Console(highlight=False)
    stdout.print(table)
    stdout.print(foreign(f"manifest: {corpus.manifest}"), soft_wrap=True)


if __name__ == "__main__":
    main()
