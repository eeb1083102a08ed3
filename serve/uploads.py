"""Uploads, decoded as in the data pipeline: in a child process that is ended if it hangs, and without any address."""

from collections.abc import Iterable
from itertools import islice

import numpy as np

from videolavit.generation.prompts import Picture
from videolavit.media import Clip, DecomposeSettings, MediaError, decompose, probe
from videolavit.records.pictures import decode_image


class TooLarge(MediaError):
    """An upload beyond the limits of the service."""


def read_image(data: bytes, max_pixels: int) -> Picture:
    """A picture, uint8 [height, width, 3]. Raises MediaError."""
    picture = decode_image(data)
    if picture.shape[0] * picture.shape[1] > max_pixels:
        height, width = picture.shape[:2]
        raise TooLarge(f"the picture has {width} x {height} pixels; at most {max_pixels:,} are taken")
    return np.ascontiguousarray(picture)


def read_clips(data: bytes, policy: str, max_clips: int | None, max_seconds: float, max_pixels: int) -> list[Clip]:
    """Clips of a video.

    Args:
        policy: `eval` as for questions, `corpus` for all frames.
        max_clips: Only so many from the start.
        max_seconds: A longer video is refused.

    Raises:
        MediaError: it cannot be decomposed, or is beyond a limit.
    """
    side = int(max_pixels**0.5) * 2
    settings = DecomposeSettings(policy=policy, max_width=side, max_height=side)  # type: ignore[arg-type]
    info = probe(data, settings)
    if info.seconds is not None and info.seconds > max_seconds:
        raise TooLarge(f"the video lasts {info.seconds:.0f} s; at most {max_seconds:g} s are taken")
    if info.width * info.height > max_pixels:
        raise TooLarge(f"the video has {info.width} x {info.height} pixels; at most {max_pixels:,} are taken")
    clips: Iterable[Clip] = decompose(data, settings, end_seconds=max_seconds)
    return list(islice(clips, max_clips))
