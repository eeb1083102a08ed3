"""Where a synthetic video's shape moves, by the project's own decomposition."""

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videolavit.media import Clip, DecomposeSettings, decompose, write_mp4

from .foreground import difference

SHORTER_SIDE = 128
"""Pixels to which a video is enlarged at least before it is decomposed, so that blocks are small beside its shape."""

SHAPE = 0.6
"""A pixel that differs from the background by more than this share of the most belongs to the shape."""

FARTHEST = 0.05
"""Displacement a frame, in shares of the shorter side, beyond which a vector is a chance match and not motion."""

STILL = 0.001
"""The same, below which nothing moves."""


def direction(frames: NDArray[np.uint8], fps: int = DecomposeSettings.fps) -> str | None:
    """Where the shape moves: `right`, `left`, `down` or `up`; None if it is still.

    The mean of the vectors of the shape's blocks decides.

    Args:
        frames: uint8 [time, height, width, 3], up to a clip.
    """
    clip = next(decomposed(frames, fps))
    displacement = clip.motion[: len(frames)].astype(np.float64) / 2 / min(clip.height, clip.width)
    weights = _shares(frames, clip) * (np.abs(displacement).max(axis=-1) < FARTHEST)
    x, y = np.average(displacement, axis=(0, 1, 2), weights=weights) if weights.any() else (0, 0)
    if max(abs(x), abs(y)) < STILL:
        return None
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def decomposed(frames: NDArray[np.uint8], fps: int = DecomposeSettings.fps) -> Iterator[Clip]:
    """Yields the clips of a video uint8 [time, height, width, 3], enlarged if it is small."""
    height, width = frames.shape[1:3]
    scale = max(1, -(-SHORTER_SIDE // min(height, width)))
    size = (width * scale // 2 * 2, height * scale // 2 * 2)  # the encoder wants even sides
    large = (np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames)
    file = io.BytesIO()
    write_mp4(large, file, fps)
    yield from decompose(file.getvalue(), DecomposeSettings(fps=fps))


def _shares(frames: NDArray[np.uint8], clip: Clip) -> NDArray[np.float32]:
    """Share of each block that the shape covers, float32 [time, blocks_high, blocks_wide]."""
    away = difference(frames)
    shape = (away > SHAPE * np.quantile(away, 0.998, axis=(1, 2), keepdims=True)).astype(np.float32)
    blocks = (clip.motion.shape[2], clip.motion.shape[1])
    rows = [Image.fromarray(one).resize(blocks, Image.Resampling.BOX) for one in shape]
    return np.stack([np.asarray(row) for row in rows])
