"""Synthetic corpora: rendered videos, and a manifest with their captions and the true motion of every shape."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videolavit.media import write_mp4
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.storage import Folder, StorageSettings
from videolavit.scratch import scratch_folder

from .questions import chat_records
from .scenes import Scene, SynthSettings, draw_scene, render

MANIFEST, QUESTIONS = "manifest.jsonl", "questions.jsonl"
"""Names of the files beside the videos."""


@dataclass(frozen=True, kw_only=True)
class RenderedCorpus:
    """Summary of a rendered corpus.

    Attributes:
        url: Folder of the corpus.
        manifest: URL of the manifest, which `decompose` reads.
        questions: URL of the conversations; None where none were asked for.
        num_videos: Number of videos.
        num_shapes: Number of shapes in all videos.
        video_seconds: Length of all videos, in seconds.
    """

    url: str
    manifest: str
    questions: str | None
    num_videos: int
    num_shapes: int
    video_seconds: float


def render_corpus(
    output: str,
    num_videos: int,
    settings: SynthSettings | None = None,
    *,
    seed: int = 0,
    questions: bool = False,
    storage: StorageSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> RenderedCorpus:
    """Renders a captioned corpus of moving shapes with known motion.

    The folder gets `videos/*.mp4` and `manifest.jsonl`: file, caption and the true motion of every shape. Video number
    i depends on the seed and the settings only, so a second call with a larger number adds videos. The manifest is
    written last, and is removed first: it always lists complete videos of one seed and one set of settings.

    Args:
        output: Folder or URL of the corpus.
        num_videos: Number of videos, at least 1.
        settings: Content of the videos.
        seed: Seed of the scenes, at least 0; another seed gives other videos.
        questions: True to write `questions.jsonl` as well: conversations in LLaVA's format.
        storage: Options of remote storage.
        on_progress: Called after each video, with the stage `render`.

    Raises:
        ValueError: a number or a seed out of range.
        StorageError: the folder cannot be used.
        OSError: a file cannot be written.
    """
    if num_videos < 1:
        raise ValueError(f"the number of videos must be at least 1, not {num_videos}")
    if seed < 0:
        raise ValueError(f"the seed must be at least 0, not {seed}")
    settings = settings or SynthSettings()
    folder = Folder(output, storage or StorageSettings())
    scenes = [draw_scene(settings, seed, index) for index in range(num_videos)]
    names = [f"videos/{index:06d}.mp4" for index in range(num_videos)]
    if folder.read(MANIFEST) is not None:  # until the last video is written, it would list old and new ones
        folder.fs.rm_file(folder.join(MANIFEST))
    for done, (name, scene) in enumerate(zip(names, scenes, strict=True), 1):
        folder.replace(name, _mp4(scene, settings))
        on_progress(Progress("render", done, num_videos))
    rows = [
        {"video": name, "text": scene.text, "shapes": scene.truth()} for name, scene in zip(names, scenes, strict=True)
    ]
    folder.replace(MANIFEST, _json_lines(rows))
    if questions:
        named = zip(names, scenes, strict=True)
        records = [record for name, scene in named for record in chat_records(scene, Path(name).stem, name)]
        folder.replace(QUESTIONS, _json_lines(records))
    return RenderedCorpus(
        url=folder.url,
        manifest=f"{folder.url}/{MANIFEST}",
        questions=f"{folder.url}/{QUESTIONS}" if questions else None,
        num_videos=num_videos,
        num_shapes=sum(len(scene.shapes) for scene in scenes),
        video_seconds=num_videos * settings.num_frames / settings.fps,
    )


def _mp4(scene: Scene, settings: SynthSettings) -> bytes:
    with scratch_folder() as scratch:
        file = scratch / "video.mp4"  # the writer puts an index in front of the frames only in a named file
        write_mp4(render(scene, settings), file, settings.fps, threads=1)
        return file.read_bytes()


def _json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
