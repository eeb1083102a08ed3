"""Exhibits of the demo: videos taken apart, rebuilt from tokens, made from words, asked about, and mixed."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videolavit.evaluation.questions import DIRECTION_QUESTION
from videolavit.generation.animate import animate_clips
from videolavit.generation.describe import Question, answer
from videolavit.generation.generate import generate_videos
from videolavit.generation.output import save_picture, side_by_side
from videolavit.generation.prompts import Picture, Prompt, encode_motion, encode_pictures
from videolavit.generation.reconstruct import reconstruct_clips
from videolavit.generation.runtime import Runtime
from videolavit.media import Clip, DecomposeSettings, arrow_style, draw_motion, write_mp4
from videolavit.media.resize import resize_picture
from videolavit.progress import OnProgress, Progress
from videolavit.records.foreign import iterate_clips, iterate_pictures, read_clips
from videolavit.records.storage import StorageSettings

FPS = 6
FOOTAGE_WIDTH = 480
"""Width of real footage on the page, in pixels."""

FOOTAGE_CLIPS = 2
REBUILT, MADE, ASKED = 3, 6, 3
"""Numbers of rendered videos that are rebuilt, whose captions become other videos, and that are asked about."""

SHOWN_QUESTIONS = (DIRECTION_QUESTION, "What colour is it?", "What shape is it?")


@dataclass(frozen=True)
class Tokens:
    """Tokens of a clip.

    Args:
        visual: Codes of the keyframe.
        motion: Codes of the motion.
    """

    visual: Sequence[int]
    motion: Sequence[int]

    def __len__(self) -> int:
        return len(self.visual) + len(self.motion)


@dataclass(frozen=True)
class Exhibit:
    """A video of the demo's page.

    Args:
        video: mp4 file, or PNG file of a picture.
        caption: Name of what it shows, or text that it was made from.
        tokens: Tokens of its first clip, which the video was reduced to, or made from.
        values: Numbers that its first clip has as pixels.
        answers: Questions about the video, each with the model's answer.
    """

    video: Path
    caption: str
    tokens: Tokens
    values: int
    answers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Exhibits:
    """All videos of the demo's page.

    Args:
        footage: Real videos, each beside its keyframes with the motion drawn as arrows.
        rebuilt: Rendered videos, each beside its reconstruction from tokens.
        made: Videos that were generated from captions.
        asked: Rendered videos with questions and answers.
        mixed: Rendered video whose picture was taken, the one whose motion was taken, and the result.
    """

    footage: Sequence[Exhibit]
    rebuilt: Sequence[Exhibit]
    made: Sequence[Exhibit]
    asked: Sequence[Exhibit]
    mixed: Sequence[Exhibit]


def make_exhibits(
    runtime: Runtime, footage: Sequence[Path], rendered: Sequence[dict[str, Any]], folder: Path, on_progress: OnProgress
) -> Exhibits:
    """Makes the demo's videos.

    Args:
        runtime: Trained model.
        footage: Real videos.
        rendered: Rows of rendered videos, with `video`, the path of a file, `text` and `shapes`.
        folder: Folder of the files.

    Raises:
        MediaError: a video cannot be decomposed.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[], list[Exhibit]]] = {
        "footage": lambda: [_footage(runtime, file, folder) for file in footage],
        "rebuilt": lambda: [_rebuilt(runtime, row, folder) for row in rendered[:REBUILT]],
        "made": lambda: _made(runtime, rendered[:MADE], folder),
        "asked": lambda: _asked(runtime, rendered[-ASKED:]),
        "mixed": lambda: _mixed(runtime, *_mixable(rendered), folder),
    }
    made: dict[str, list[Exhibit]] = {}
    for number, (name, make) in enumerate(steps.items()):
        on_progress(Progress("exhibits", number, len(steps), name))
        made[name] = make()
    on_progress(Progress("exhibits", len(steps), len(steps)))
    return Exhibits(**made)


def _footage(runtime: Runtime, file: Path, folder: Path) -> Exhibit:
    arguments = str(file), StorageSettings(), DecomposeSettings()
    with (
        contextlib.closing(iterate_clips(*arguments)) as clips,
        contextlib.closing(iterate_pictures(*arguments)) as pictures,
    ):
        shown = list(itertools.islice(clips, FOOTAGE_CLIPS))
        video = folder / f"{file.stem}.mp4"
        write_mp4(itertools.chain.from_iterable(_beside_motion(clip, pictures) for clip in shown), video, FPS)
    return Exhibit(video, file.stem, _tokens(runtime, shown[0]), _values(shown[0].num_frames, shown[0]))


def _beside_motion(clip: Clip, pictures: Iterator[Picture]) -> Iterator[Picture]:
    """Frames of a clip, each beside the keyframe with the motion of that frame."""
    size = round(FOOTAGE_WIDTH * clip.height / clip.width / 2) * 2, FOOTAGE_WIDTH
    style = arrow_style(clip.motion[1 : clip.num_frames], clip.width)
    dimmed = (clip.keyframe * 0.6).astype(np.uint8)
    for motion, picture in zip(clip.motion[: clip.num_frames], pictures, strict=False):
        moved = draw_motion(dimmed, motion, **style)
        yield side_by_side(resize_picture(picture, *size), resize_picture(moved, *size))


def _tokens(runtime: Runtime, clip: Clip) -> Tokens:
    with runtime.use("visual_tokenizer") as tokenizer:
        (visual,) = encode_pictures([clip.keyframe], tokenizer)
    with runtime.use("motion_tokenizer") as tokenizer:
        (motion,) = encode_motion([clip], tokenizer)
    return Tokens(visual, motion)


def _values(frames: int, size: Clip) -> int:
    return frames * size.height * size.width * 3


def _rebuilt(runtime: Runtime, row: dict[str, Any], folder: Path) -> Exhibit:
    clip = next(reconstruct_clips(runtime, row["video"]))
    video = folder / f"rebuilt-{Path(row['video']).name}"
    write_mp4(side_by_side(clip.original, clip.frames), video, FPS)
    return Exhibit(video, row["text"], Tokens(clip.visual, clip.motion), clip.original.size)


def _made(runtime: Runtime, rows: Sequence[dict[str, Any]], folder: Path) -> list[Exhibit]:
    prompts = [Prompt((row["text"],), seed) for seed, row in enumerate(rows)]
    exhibits = []
    for row, made in zip(rows, generate_videos(runtime, prompts), strict=True):
        video = folder / f"made-{Path(row['video']).name}"
        write_mp4(made.frames, video, FPS)
        exhibits.append(Exhibit(video, row["text"], Tokens(made.visual[0], made.motion[0]), made.frames.size))
    return exhibits


def _asked(runtime: Runtime, rows: Sequence[dict[str, Any]]) -> list[Exhibit]:
    settings = DecomposeSettings(policy="eval")
    clips = [read_clips(row["video"], StorageSettings(), settings) for row in rows]
    asked = [(about, text) for about in clips for text in SHOWN_QUESTIONS]
    answers = iter(answer(runtime, [Question((about, text)) for about, text in asked]))
    return [
        Exhibit(
            Path(row["video"]),
            row["text"],
            _tokens(runtime, about[0]),
            _values(about[0].num_frames, about[0]),
            [(text, next(answers)) for text in SHOWN_QUESTIONS],
        )
        for row, about in zip(rows, clips, strict=True)
    ]


def _mixable(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two videos whose shapes differ in colour and direction, or else the first and the last."""
    first = rows[0]
    shape = first["shapes"][0]
    for row in rows:
        other = row["shapes"][0]
        if other["colour"] != shape["colour"] and other["direction"] != shape["direction"]:
            return first, row
    return first, rows[-1]


def _mixed(runtime: Runtime, seen: dict[str, Any], moved: dict[str, Any], folder: Path) -> list[Exhibit]:
    picture, motion = (
        next(iter(read_clips(one["video"], StorageSettings(), DecomposeSettings()))) for one in (seen, moved)
    )
    made = next(animate_clips(runtime, picture.keyframe, moved["video"]))
    still, video = folder / "picture.png", folder / "mixed.mp4"
    save_picture(picture.keyframe, still, {})
    write_mp4(made.frames, video, FPS)
    tokens = Tokens([], made.motion)
    return [
        Exhibit(still, seen["text"], _tokens(runtime, picture), _values(1, picture)),
        Exhibit(Path(moved["video"]), moved["text"], _tokens(runtime, motion), _values(motion.num_frames, motion)),
        Exhibit(video, "the picture of the first, the motion of the second", tokens, made.frames.size),
    ]
