"""Animation of a picture with the motion of a video: the keyframe of one, the motion tokens of another."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic.dataclasses import dataclass as settings_dataclass

from videolavit.files import write_beside
from videolavit.media import DecomposeSettings, Mp4Writer
from videolavit.models.network import STRICT
from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.foreign import iterate_clips
from videolavit.records.storage import StorageSettings

from .clip_settings import ClipSettings
from .execute import execute
from .inputs import check_output, load_runtime, media_errors_of, read_picture_or_clips
from .output import model_hash, provenance
from .program import ClipCodes, Program, reconstruction_steps
from .prompts import Picture, encode_motion
from .runtime import Runtime, RuntimeSettings
from .settings import settings_of_model

ANIMATION_PARTS = ("motion_tokenizer", "video_detokenizer")
"""Parts of the model whose weights an animation depends on."""


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class AnimateSettings(ClipSettings):
    """Settings for animating a picture."""


@dataclass(frozen=True, eq=False)
class AnimatedClip:
    """Clip with the motion of another one.

    Args:
        frames: uint8 [time, height, width, 3]; without the first frame, which repeats the last one before it, in all
            clips but the first.
        motion: Motion codes.
    """

    frames: Picture
    motion: list[int]


@dataclass(frozen=True)
class AnimationSummary:
    """Result of `animate`.

    Args:
        clips: Number of clips.
        frames: Number of frames.
        video: File of the animation.
        model_is_trained: False if the weights are untrained, so that the animation is meaningless.
    """

    clips: int
    frames: int
    video: Path
    model_is_trained: bool


def animate(
    picture: str | os.PathLike[str],
    video: str | os.PathLike[str],
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: AnimateSettings | None = None,
    placement: RuntimeSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> AnimationSummary:
    """Animates a picture with the motion of a video, and writes the result to an mp4 file.

    The file carries the seed and the model's hash as metadata. A call that fails leaves no file behind.

    Args:
        picture: Picture file; or a video, whose first keyframe is taken.
        video: Video file whose motion is taken.
        model: Model folder, or name of a shipped model or preset.
        output: File to write; None for `NAME-animated.mp4` in the working folder, NAME being the picture's.
        settings: Size, denoising steps and clips; None for those that suit the model.
        placement: Device and data type of the model.
        on_progress: Receives the denoising steps of each clip, and a message if the weights are untrained.

    Raises:
        ValueError: a setting or an output that is impossible.
        MediaError: the picture or the video cannot be read.
        ModelError: the model cannot be loaded, or lacks a part.
        OSError: a file cannot be written.
    """
    file = check_output(output or f"{Path(picture).stem}-animated.mp4", ".mp4")
    found = read_picture_or_clips(picture, max_clips=1)
    keyframe = found[0].keyframe if isinstance(found, list) else found
    runtime = load_runtime(model, placement, on_progress)
    settings = settings or settings_of_model(runtime.model, AnimateSettings)
    weights = model_hash(runtime.model, ANIMATION_PARTS)
    title = f"{Path(picture).name} with the motion of {Path(video).name}"
    clips = frames = 0
    metadata = provenance(title, settings.seed, weights)
    with (
        media_errors_of(video),
        write_beside(file) as (unfinished,),
        Mp4Writer(unfinished, settings.fps, metadata=metadata) as writer,
    ):
        for clip in animate_clips(runtime, keyframe, os.fspath(video), settings, on_progress):
            clips, frames = clips + 1, frames + len(clip.frames)
            for frame in clip.frames:
                writer.add(frame)
    return AnimationSummary(clips, frames, file, runtime.model.is_trained)


def animate_clips(
    runtime: Runtime,
    keyframe: Picture,
    source: str | os.PathLike[str] | bytes,
    settings: AnimateSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[AnimatedClip]:
    """Moves a picture as a video moves, and yields the clips one by one, in bounded memory.

    A later clip goes on from the last frame of the one before.

    Args:
        keyframe: uint8 [height, width, 3], of any size.
        source: Path or bytes of the video.

    Raises:
        MediaError: the source cannot be decomposed.
        ValueError: a size that the model cannot generate.
        ModelError: the model lacks a part.
    """
    settings = settings or settings_of_model(runtime.model, AnimateSettings)
    size = settings.size(runtime.model, *keyframe.shape[:2])
    named = source if isinstance(source, bytes) else os.fspath(source)
    with contextlib.closing(iterate_clips(named, StorageSettings(), DecomposeSettings())) as clips:
        for number, clip in enumerate(itertools.islice(clips, settings.clips)):
            with runtime.use("motion_tokenizer") as tokenizer:
                (motion,) = encode_motion([clip], tokenizer)
            program = Program(
                {number: ClipCodes(motion=motion)},
                reconstruction_steps(settings.seed, number, clip.num_frames, keyframe),
            )
            (codes,), results = execute(runtime, [program], settings.generation(size), on_progress)
            frames = program.video(codes, results).frames
            keyframe = frames[-1]
            yield AnimatedClip(frames[1:] if number else frames, motion)
