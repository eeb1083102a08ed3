"""Clips: groups of up to 24 frames, each with one keyframe and the motion of all frames."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from videolavit.sandbox.sendable import sendable

from .motion import motion_features, motion_score
from .reencode import DecomposedFrame, iter_frames
from .settings import CLIP_FRAMES, GOP_FRAMES, DecomposeSettings
from .source import VideoInput
from .write import write_mp4


@sendable
@dataclass(frozen=True, eq=False)
class Clip:
    """A keyframe and the motion that follows it.

    Attributes:
        start_frame: Index of the keyframe in the re-encoded stream.
        num_frames: Number of frames, the keyframe included; 24 unless the clip is short.
        seconds: Time of the keyframe in the source, in seconds.
        keyframe: uint8 [height, width, 3] RGB.
        motion: int16 [24, ceil(height/16), ceil(width/16), 2] in half pixels, x first; 0 after `num_frames`.
        num_vectors: int32 [24], number of blocks with a motion vector in each frame.
    """

    start_frame: int
    num_frames: int
    seconds: float
    keyframe: NDArray[np.uint8]
    motion: NDArray[np.int16]
    num_vectors: NDArray[np.int32]

    @property
    def height(self) -> int:
        return int(self.keyframe.shape[0])

    @property
    def width(self) -> int:
        return int(self.keyframe.shape[1])

    @property
    def motion_score(self) -> float:
        """Mean motion per frame, in percent of the frame's diagonal; see `motion_score` in `videolavit.media`."""
        return motion_score(self.motion, self.num_vectors, self.width, self.height)

    def features(self, size: tuple[int, int] = (20, 36), rescale: bool = True) -> NDArray[np.float32]:
        """Input of the motion tokenizer, or with `rescale=False` of the video U-Net: float32 [2, 24, *size]."""
        return motion_features(self.motion, self.width, self.height, size, rescale=rescale)


def decompose(
    source: VideoInput,
    settings: DecomposeSettings | None = None,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Iterator[Clip]:
    """Yields the clips of a video, chosen by the policy of the settings.

    The policy `corpus` holds one clip in memory at a time. The policy `eval` selects among all clips, and so holds the
    motion and the I frames of the whole video.

    Args:
        source: Path, bytes, or a seekable binary file object.
        settings: Policy, frame rate, bit rate and limits.
        start_seconds: Start of the range to decompose, in seconds from the start of the source.
        end_seconds: End of the range, exclusive, in seconds; None for the end of the source.

    Raises:
        MediaError: the source cannot be decomposed; clips may have been yielded before.
    """
    settings = settings or DecomposeSettings()
    frames = iter_frames(source, settings, start_seconds=start_seconds, end_seconds=end_seconds)
    if settings.policy == "corpus":
        for group in corpus_groups(frames):
            yield _clip(group)
    else:
        kept = list(frames)
        for start, count in select_eval_clips([frame.type for frame in kept], settings.max_clips):
            yield _clip(kept[start : start + count])


def decompose_frames(
    frames: Sequence[NDArray[np.uint8]], fps: float, settings: DecomposeSettings | None = None
) -> Iterator[Clip]:
    """Yields the clips of a video that is given as frames, as `decompose` does.

    Args:
        frames: Frames of one size at equal distances in time, uint8 [height, width, 3].
        fps: Frames per second.
        settings: Policy, frame rate after resampling, bit rate and limits.

    Raises:
        ValueError: no frames, or frames of several sizes.
        MediaError: the frames are too few, or too large.
    """
    file = io.BytesIO()
    write_mp4(frames, file, fps, crf=0)
    return decompose(file.getvalue(), settings)


def corpus_groups(frames: Iterable[DecomposedFrame]) -> Iterator[list[DecomposedFrame]]:
    """Divides a stream into groups that start with an I frame, so that every frame is in exactly one group.

    A group has 24 frames, or ends at an I frame that is not 12 frames after its start: there the encoder found a
    scene cut, and the next group begins.
    """
    group: list[DecomposedFrame] = []
    for frame in frames:
        if len(group) == CLIP_FRAMES or (group and frame.type == "I" and len(group) != GOP_FRAMES):
            yield group
            group = []
        assert group or frame.type == "I", "the encoder starts every clip with an I frame"
        group.append(frame)
    if group:
        yield group


def select_eval_clips(types: Sequence[str], max_clips: int) -> list[tuple[int, int]]:
    """Selects clips as the published model does for understanding.

    Args:
        types: `"I"` or `"P"` for each frame.
        max_clips: Largest number of clips.

    Returns:
        (start frame, number of frames) of each clip.

    Raises:
        ValueError: there is no I frame.
    """
    starts = [index for index, kind in enumerate(types) if kind == "I"]
    if not starts:
        raise ValueError("no I frame, so no clip can start")
    regular = [a for a, b in pairwise(starts) if b - a == GOP_FRAMES] if len(starts) > 1 else starts
    regular = [start for start in regular if start + CLIP_FRAMES <= len(types)]
    if len(regular) >= 2:
        starts = regular
    # A clip is two groups of pictures, so every second I frame starts one; the first group is left out when it can be.
    if len(starts) / 2 <= max_clips:
        starts = starts[1::2] if len(starts) > 2 else starts[::2]
    else:
        starts = starts[1::2]
        if len(starts) > max_clips:
            starts = [starts[int(i)] for i in np.linspace(0, len(starts) - 1, max_clips)]
    return [(start, min(CLIP_FRAMES, len(types) - start)) for start in starts]


def _clip(frames: Sequence[DecomposedFrame]) -> Clip:
    first = frames[0]
    assert first.image is not None
    motion = np.zeros((CLIP_FRAMES, *first.motion.shape), np.int16)
    num_vectors = np.zeros(CLIP_FRAMES, np.int32)
    for offset, frame in enumerate(frames):
        motion[offset], num_vectors[offset] = frame.motion, frame.num_vectors
    return Clip(
        start_frame=first.index,
        num_frames=len(frames),
        seconds=first.seconds,
        keyframe=first.image,
        motion=motion,
        num_vectors=num_vectors,
    )
