"""A sample as the tokenizers read it: pictures and motion of one size each, and its text.

Runs in a child process and knows nothing of torch, so that the child starts fast.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videolavit.media import CLIP_FRAMES, MediaError, motion_features
from videolavit.media.resize import resize_picture
from videolavit.sandbox.sendable import sendable

from .inputs import InputSettings
from .rows import VideoSample
from .samples import SampleSettings, decode_picture, stored_clips
from .storage import StorageSettings, open_source


class NothingInside(MediaError):
    """A container without samples."""


@dataclass(frozen=True)
class PrepareSettings:
    """Sizes that the tokenizers read, and how a video becomes clips.

    Args:
        sample: Settings of the decomposition of videos.
        inputs: Settings of the reading of inputs.
        picture_size: Width and height of a picture, in pixels.
        motion_size: Height and width of a motion grid, in blocks.
    """

    sample: SampleSettings
    inputs: InputSettings
    picture_size: int
    motion_size: tuple[int, int]


@sendable
@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample, ready for the tokenizers.

    Args:
        pictures: uint8 [clips, size, size, 3].
        motion: float32 [clips, 2, 24, *motion_size]; [0, ...] for an image or a text.
        end_seconds: End of a video's segment, in seconds; None for an image or a text.
        work_seconds: Core-seconds of its decomposition.
    """

    text: str | None
    pictures: NDArray[np.uint8]
    motion: NDArray[np.float32]
    end_seconds: float | None = None
    work_seconds: float = 0.0


def prepare_clips(sample: VideoSample, text: str | None, settings: PrepareSettings) -> Prepared:
    """Prepares the clips of a video."""
    size = settings.picture_size
    pictures, motion = [], []
    for keyframe, grids in stored_clips(sample.clips):
        pictures.append(resize_picture(decode_picture(keyframe), size, size))
        motion.append(motion_features(grids, sample.width, sample.height, settings.motion_size))
    further = {"end_seconds": sample.end_seconds, "work_seconds": sample.work_seconds}
    return prepared(text, pictures, motion, settings, **further)


def prepared(
    text: str | None,
    pictures: list[NDArray[np.uint8]],
    motion: list[NDArray[np.float32]],
    settings: PrepareSettings,
    **further: Any,
) -> Prepared:
    """A sample of pictures and motion, either of which may be none."""
    size = settings.picture_size
    return Prepared(
        text,
        np.array(pictures, np.uint8).reshape(-1, size, size, 3),
        np.array(motion, np.float32).reshape(-1, 2, CLIP_FRAMES, *settings.motion_size),
        **further,
    )


def read_bytes(
    url: str,
    storage: StorageSettings,
    limit: int,
    too_large: type[MediaError],
    offset: int | None = None,
    length: int | None = None,
) -> bytes:
    """Content of a file, or of a range of one.

    Raises:
        MediaError: it cannot be read, or is larger than `limit` bytes.
    """
    with open_source(url, storage, offset or 0, length) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise too_large(f"more than {limit >> 20} MiB")
    return data
