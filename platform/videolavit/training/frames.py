"""Clips with their frames. Clip shards hold no frames, so they are decoded from the videos again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videolavit.records.foreign import FramesPlace, read_frames
from videolavit.records.storage import StorageSettings

from .data import SampleSource
from .sources import ClipSample, MappedSource, clip_sources


@dataclass(frozen=True, eq=False)
class ClipWithFrames:
    """A clip with its frames.

    Attributes:
        keyframe: Stored keyframe, uint8 [height, width, 3], with the losses of its image format.
        frames: Frames of the video, uint8 [num_frames, height, width, 3].
    """

    clip: ClipSample
    keyframe: NDArray[np.uint8]
    frames: NDArray[np.uint8]


def frame_sources(urls: Sequence[str], storage: StorageSettings, size: tuple[int, int]) -> list[SampleSource]:
    """Sources of ClipWithFrames of a size (height, width), one for each run or clip shard. Raises as `clip_sources`."""
    return [
        MappedSource(source, lambda clip: decode_clip_frames(clip, size, storage))
        for source in clip_sources(urls, storage)
    ]


def decode_clip_frames(clip: ClipSample, size: tuple[int, int], storage: StorageSettings) -> ClipWithFrames:
    """Decodes exactly the frames that the motion of a clip describes.

    Frames are counted from the start of the segment, as they were when it was decomposed: a seek to the clip itself
    may be off by a frame.

    Raises:
        MediaError: the video cannot be read any more, or has changed.
    """
    place = FramesPlace(clip.sample_seconds, round(clip.fps), clip.start_frame, clip.num_frames)
    keyframe, frames = read_frames(clip.source, place, clip.keyframe, size, storage)
    return ClipWithFrames(clip, keyframe, frames)
