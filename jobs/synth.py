"""Render a captioned corpus of moving shapes with known motion.

The output folder gets `videos/*.mp4` and `manifest.jsonl`, which `videolavit decompose --input` reads: file, caption
and the true motion of every shape. Video number i depends on the seed and the settings only, so that starting again
with a larger number adds videos. The manifest is written last: it lists complete videos of one seed and one set of
settings. With `--questions` there is also `questions.jsonl`: what `videolavit train language-model` reads as chat.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from videolavit.evaluation.questions import chat_records
from videolavit.media import write_mp4
from videolavit.records.storage import Folder, StorageError, StorageSettings
from videolavit.synth import Scene, SynthSettings, draw_scene, render

from .common import JobParser, console, fail, pick, user_errors
from .progress import LOG_EVERY

MANIFEST, QUESTIONS = "manifest.jsonl", "questions.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    """Renders the corpus; exits with 2 on a user's mistake."""
    options = _parser().parse(argv)
    if options.videos < 1:
        fail(f"--videos must be at least 1, not {options.videos}")
    if options.seed < 0:
        fail(f"--seed must be at least 0, not {options.seed}")
    with user_errors(ValueError):
        settings = pick(SynthSettings, options)
    started = time.monotonic()
    with user_errors(StorageError, OSError):
        folder = Folder(options.output, StorageSettings(s3_endpoint=options.s3_endpoint))
        scenes = [draw_scene(settings, options.seed, index) for index in range(options.videos)]
        _write_corpus(folder, scenes, settings)
        if options.questions:
            _write_questions(folder, scenes)
    _print_summary(folder, scenes, settings, time.monotonic() - started)


def _parser() -> JobParser:
    parser = JobParser("synth", __doc__)
    parser.add_argument("--output", type=str, required=True, help="folder or s3:// prefix for the corpus")
    parser.add_argument("--videos", type=int, required=True, help="how many videos")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other videos")
    parser.add_argument("--questions", action="store_true", help=f"also write {QUESTIONS}: conversations as LLaVA's")
    parser.add_class_arguments(SynthSettings)
    parser.add_class_arguments(StorageSettings)
    return parser


def _write_corpus(folder: Folder, scenes: Sequence[Scene], settings: SynthSettings) -> None:
    if folder.read(MANIFEST) is not None:  # until this run ends, it would describe a mixture of old and new videos
        folder.fs.rm_file(folder.join(MANIFEST))
    for index, scene in _shown(list(enumerate(scenes))):
        folder.replace(_video_name(index), _mp4(scene, settings))
    rows = [
        {"video": _video_name(index), "text": scene.text, "shapes": scene.truth()} for index, scene in enumerate(scenes)
    ]
    folder.replace(MANIFEST, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _write_questions(folder: Folder, scenes: Sequence[Scene]) -> None:
    records = (
        record
        for index, scene in enumerate(scenes)
        for record in chat_records(scene, f"{index:06d}", _video_name(index))
    )
    folder.replace(QUESTIONS, "".join(json.dumps(record) + "\n" for record in records).encode())


def _video_name(index: int) -> str:
    return f"videos/{index:06d}.mp4"


def _mp4(scene: Scene, settings: SynthSettings) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "video.mp4"  # an index in front of the pictures takes a file with a name
        write_mp4(render(scene, settings), file, settings.fps, threads=1)
        return file.read_bytes()


def _shown(scenes: Sequence[tuple[int, Scene]]) -> Iterator[tuple[int, Scene]]:
    """The same items: a bar on a terminal, a line now and then in a log."""
    columns = (TextColumn("synth"), BarColumn(), MofNCompleteColumn(), TextColumn("videos"), TimeRemainingColumn())
    if console.is_terminal:
        with Progress(*columns, console=console) as bar:
            yield from bar.track(scenes)
    else:
        yield from _logged(scenes, len(scenes))


def _logged(scenes: Iterable[tuple[int, Scene]], total: int) -> Iterator[tuple[int, Scene]]:
    logged = time.monotonic()
    for index, scene in scenes:
        yield index, scene
        if time.monotonic() - logged > LOG_EVERY:
            logged = time.monotonic()
            console.print(f"synth: {index + 1}/{total} videos")


def _print_summary(folder: Folder, scenes: Sequence[Scene], settings: SynthSettings, seconds: float) -> None:
    table = Table(title=f"corpus {folder.url}", show_header=False)
    table.add_row("videos", f"{len(scenes):,}")
    table.add_row("shapes", f"{sum(len(scene.shapes) for scene in scenes):,}")
    table.add_row("picture", f"{settings.width} x {settings.height}, {settings.fps} frames a second")
    table.add_row("video", f"{len(scenes) * settings.num_frames / settings.fps / 3600:.3f} h")
    table.add_row("this start", f"{seconds:.1f} s")
    stdout = Console(highlight=False)
    stdout.print(table)
    stdout.print(f"manifest: {folder.url}/{MANIFEST}", soft_wrap=True)


if __name__ == "__main__":
    main()
