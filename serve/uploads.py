"""Decoding of uploads, in child processes as in the data pipeline: one that hangs is ended, and none opens a URL."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from videolavit.media import Clip, DecomposeSettings, MediaError, decompose, decompose_frames, probe
from videolavit.records.pictures import decode_image

if TYPE_CHECKING:
    from videolavit.generation.prompts import Picture  # loads torch, which child processes do not need


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
        max_clips: Most clips: spread over the video with the policy `eval`, its first ones with `corpus`; None for the
            number that the policy selects.
        max_seconds: Longest accepted video, in seconds.
        max_pixels: Most pixels of a frame.

    Raises:
        MediaError: the video cannot be decomposed, or exceeds a limit.
    """
    side = int(max_pixels**0.5) * 2
    settings = DecomposeSettings(policy=policy, max_width=side, max_height=side)  # type: ignore[arg-type]
    if max_clips is not None:
        settings = replace(settings, max_clips=max_clips)
    info = probe(data, settings)
    if info.seconds is not None and info.seconds > max_seconds:
        raise TooLarge(f"the video lasts {info.seconds:.0f} s; at most {max_seconds:g} s are accepted")
    if info.width * info.height > max_pixels:
        raise TooLarge(f"the video has {info.width} x {info.height} pixels; at most {max_pixels:,} are accepted")
    clips: Iterable[Clip] = decompose(data, settings, end_seconds=max_seconds)
    return list(islice(clips, max_clips))


def read_frames(files: list[bytes], fps: float, max_seconds: float, max_pixels: int) -> list[Clip]:
    """Clips, for questions, of a video that is uploaded as one image for each frame.

    Args:
        files: Image files.
        fps: Frames per second.
        max_seconds: Longest accepted video, in seconds.
        max_pixels: Most pixels of a frame.

    Raises:
        MediaError: a file is no image, the images differ in size, or the video exceeds a limit.
    """
    if len(files) > max_seconds * fps:
        raise TooLarge(f"the images last {len(files) / fps:.0f} s; at most {max_seconds:g} s are accepted")
    frames = [read_image(file, max_pixels) for file in files]
    sizes = {f"{frame.shape[1]} x {frame.shape[0]}" for frame in frames}
    if len(sizes) > 1:
        raise MediaError(f"images that are frames of a video must be of one size, not {' and '.join(sorted(sizes))}")
    return list(decompose_frames(frames, fps, DecomposeSettings(policy="eval")))
