"""Clips with their frames. Clip shards hold no frames, so they are decoded from the videos again."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videolavit.media import DecomposeSettings, iter_pictures
from videolavit.media.resize import resize_picture
from videolavit.records.kinds import open_named_video
from videolavit.records.pictures import decode_image
from videolavit.records.storage import StorageSettings
from videolavit.records.table_reader import SourceChanged

from .data import SampleSource
from .sources import ClipSample, MappedSource, clip_sources

SAME_PICTURE = 32.0
"""Mean difference of 8-bit values between a keyframe and the frame it was encoded from; two scenes differ more."""


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
    with open_named_video(clip.source, storage) as file:
        settings = DecomposeSettings(fps=round(clip.fps))
        pictures = iter_pictures(file, settings, start_seconds=clip.sample_seconds)
        frames = list(itertools.islice(pictures, clip.start_frame, clip.start_frame + clip.num_frames))
    keyframe = decode_image(clip.keyframe)
    if len(frames) < clip.num_frames or not _same(frames[0], keyframe):
        raise SourceChanged(f"{clip.source} is not the video that it was when it was decomposed")
    return ClipWithFrames(
        clip, resize_picture(keyframe, *size), np.stack([resize_picture(one, *size) for one in frames])
    )


def _same(frame: NDArray[np.uint8], keyframe: NDArray[np.uint8]) -> bool:
    if frame.shape != keyframe.shape:
        return False
    return float(np.abs(frame.astype(np.int16) - keyframe).mean()) < SAME_PICTURE
