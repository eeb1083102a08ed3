"""Direction of the shape in a synthetic video, measured from motion vectors."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videolavit.media import Clip, DecomposeSettings, decompose_frames, motion_features
from videolavit.media.motion import TOKENIZER_SCALE, VECTOR_STD

from .foreground import background_difference

MIN_SHORTER_SIDE = 128
"""Shorter side in pixels up to which a video is enlarged before it is decomposed, so that blocks are small beside the
shape."""

FOREGROUND_THRESHOLD = 0.6
"""Share of the largest difference from the background above which a pixel belongs to the shape."""

MAX_DISPLACEMENT = 0.05
"""Displacement in a frame, as a share of the shorter side, above which a vector is a false match and no motion."""

MIN_DISPLACEMENT = 0.001
"""Displacement in a frame, as a share of the shorter side, below which the shape is still."""


MIN_MOVING = 0.002
"""Displacement in a frame, as a share of the shorter side, above which a block of a motion grid moves."""

SAME_DIRECTION = 45.0
"""Largest angle between two vectors of the same direction, in degrees."""


def shape_direction(frames: NDArray[np.uint8], fps: int = DecomposeSettings.fps) -> str | None:
    """Direction of the mean motion vector of the shape: `right`, `left`, `down` or `up`; None if it is still.

    Args:
        frames: uint8 [time, height, width, 3], at most one clip.
        fps: Frames per second.
    """
    clip = next(decompose_enlarged(frames, fps))
    displacement = clip.motion[: len(frames)].astype(np.float64) / 2 / min(clip.height, clip.width)
    weights = _block_coverage(frames, clip) * (np.abs(displacement).max(axis=-1) < MAX_DISPLACEMENT)
    x, y = np.average(displacement, axis=(0, 1, 2), weights=weights) if weights.any() else (0, 0)
    if max(abs(x), abs(y)) < MIN_DISPLACEMENT:
        return None
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def motion_agreement(frames: NDArray[np.uint8], motion: NDArray[np.float32], fps: int = DecomposeSettings.fps) -> float:
    """Share of the blocks that move in a clip's motion whose direction is the same in the frames made from it.

    Args:
        frames: uint8 [time, height, width, 3], the frames of the clip, which are decomposed again.
        motion: Motion decoded from the clip's codes, float32 [2, 24, height, width] at the tokenizer's scale.
        fps: Frames per second.
    """
    clip = next(decompose_enlarged(frames, fps))
    seen = motion_features(clip.motion, clip.width, clip.height, (motion.shape[2], motion.shape[3]))
    sides = np.array([clip.width * VECTOR_STD[0], clip.height * VECTOR_STD[1]]) / TOKENIZER_SCALE
    scale = sides[:, None, None, None] / min(clip.width, clip.height)
    told, made = (part[:, 1 : len(frames)] * scale for part in (motion, seen))  # no motion leads to the first frame
    lengths = [np.hypot(*part) for part in (told, made)]
    cosines = (told * made).sum(0) / np.maximum(lengths[0] * lengths[1], 1e-12)
    same = (cosines >= np.cos(np.radians(SAME_DIRECTION))) & (lengths[1] >= MIN_DISPLACEMENT)
    moving = lengths[0] > MIN_MOVING
    return float(same[moving].mean()) if moving.any() else 0.0


def decompose_enlarged(frames: NDArray[np.uint8], fps: int = DecomposeSettings.fps) -> Iterator[Clip]:
    """Yields the clips of a video uint8 [time, height, width, 3], enlarged if it is small."""
    height, width = frames.shape[1:3]
    scale = max(1, -(-MIN_SHORTER_SIDE // min(height, width)))
    size = (width * scale // 2 * 2, height * scale // 2 * 2)  # the encoder needs even sides
    large = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    yield from decompose_frames(large, fps, DecomposeSettings(fps=fps))


def _block_coverage(frames: NDArray[np.uint8], clip: Clip) -> NDArray[np.float32]:
    """Share of each block that the shape covers, float32 [time, blocks_high, blocks_wide]."""
    difference = background_difference(frames)
    threshold = FOREGROUND_THRESHOLD * np.quantile(difference, 0.998, axis=(1, 2), keepdims=True)
    blocks = (clip.motion.shape[2], clip.motion.shape[1])
    rows = [Image.fromarray(one).resize(blocks, Image.Resampling.BOX) for one in (difference > threshold).astype("f4")]
    return np.stack([np.asarray(row) for row in rows])
