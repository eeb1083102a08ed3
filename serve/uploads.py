"""Decoding of uploads, in child processes as in the data pipeline: one that hangs is ended, and none opens a URL."""

from collections.abc import Iterable
from itertools import islice

import numpy as np

from videolavit.generation.prompts import Picture
from videolavit.media import Clip, DecomposeSettings, MediaError, decompose, probe
from videolavit.records.pictures import decode_image


class TooLarge(MediaError):
    """The upload exceeds a limit of the service."""


def read_image(data: bytes, max_pixels: int) -> Picture:
    """Decoded image, uint8 [height, width, 3]. Raises MediaError."""
    picture = decode_image(data)
    if picture.shape[0] * picture.shape[1] > max_pixels:
        height, width = picture.shape[:2]
        raise TooLarge(f"the image has {width} x {height} pixels; at most {max_pixels:,} are accepted")
    return np.ascontiguousarray(picture)


def read_upload_clips(
    data: bytes, policy: str, max_clips: int | None, max_seconds: float, max_pixels: int
) -> list[Clip]:
    """Clips of an uploaded video.

    Args:
        policy: `eval` for the clips that the model answers questions about, `corpus` for all frames.
        max_clips: Most clips, counted from the start of the video; None for all.
        max_seconds: Longest accepted video, in seconds.
        max_pixels: Most pixels of a frame.

    Raises:
        MediaError: the video cannot be decomposed, or exceeds a limit.
    """
    side = int(max_pixels**0.5) * 2
    settings = DecomposeSettings(policy=policy, max_width=side, max_height=side)  # type: ignore[arg-type]
    info = probe(data, settings)
    if info.seconds is not None and info.seconds > max_seconds:
        raise TooLarge(f"the video lasts {info.seconds:.0f} s; at most {max_seconds:g} s are accepted")
    if info.width * info.height > max_pixels:
        raise TooLarge(f"the video has {info.width} x {info.height} pixels; at most {max_pixels:,} are accepted")
    clips: Iterable[Clip] = decompose(data, settings, end_seconds=max_seconds)
    return list(islice(clips, max_clips))
