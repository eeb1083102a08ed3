"""Clips together with their frames, which are decoded from the videos again: clip shards hold none."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videolavit.media import DecomposeSettings, iter_pictures
from videolavit.media.resize import resize_picture
from videolavit.records.kinds import open_video
from videolavit.records.pictures import decode_image
from videolavit.records.storage import StorageSettings
from videolavit.records.table_reader import SourceChanged

from .data import SampleSource
from .sources import ClipSample, MappedSource, clip_sources

SAME_PICTURE = 32.0
"""Mean difference of 8-bit values between a keyframe and the frame it was encoded from; two scenes differ more."""


@dataclass(frozen=True, eq=False)
class FramedClip:
    """A clip with its frames.

    Attributes:
        keyframe: uint8 [height, width, 3]; as stored, so with the encoder's traces.
        frames: uint8 [num_frames, height, width, 3], as the source has them.
    """

    clip: ClipSample
    keyframe: NDArray[np.uint8]
    frames: NDArray[np.uint8]


def frame_sources(named: Sequence[str], storage: StorageSettings, size: tuple[int, int]) -> list[SampleSource]:
    """Sources of FramedClip at a size (height, width), one for each named run or clip shard. Errors: `clip_sources`."""
    return [MappedSource(source, lambda clip: framed(clip, size, storage)) for source in clip_sources(named, storage)]


def framed(clip: ClipSample, size: tuple[int, int], storage: StorageSettings) -> FramedClip:
    """Decodes the frames of a clip: exactly those that its motion describes.

    They are counted from the segment's start, as they were when it was decomposed: a seek to the clip itself may be
    off by a frame.

    Raises:
        MediaError: the video cannot be read any more, or is another one.
    """
    with open_video(clip.source, storage) as file:
        settings = DecomposeSettings(fps=round(clip.fps))
        pictures = iter_pictures(file, settings, start_seconds=clip.sample_seconds)
        wanted = list(itertools.islice(pictures, clip.start_frame, clip.start_frame + clip.num_frames))
    keyframe = decode_image(clip.keyframe)
    if len(wanted) < clip.num_frames or not _same(wanted[0], keyframe):
        raise SourceChanged(f"{clip.source} is not the video that it was when it was decomposed")
    return FramedClip(clip, resize_picture(keyframe, *size), np.stack([resize_picture(one, *size) for one in wanted]))


def _same(frame: NDArray[np.uint8], keyframe: NDArray[np.uint8]) -> bool:
    if frame.shape != keyframe.shape:
        return False
    return float(np.abs(frame.astype(np.int16) - keyframe).mean()) < SAME_PICTURE
