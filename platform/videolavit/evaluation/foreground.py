"""Foreground of synthetic videos."""

import numpy as np
from numpy.typing import NDArray


def background_difference(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Largest difference of each pixel's channels from the frame's background, float32 [time, height, width].

    The background is the median colour: that of synthetic videos is most of the picture, hardly coloured and without
    bright spots.

    Args:
        frames: uint8 [time, height, width, 3].
    """
    background = np.median(frames, axis=(1, 2), keepdims=True)
    return np.asarray(np.abs(frames - background).max(axis=-1), np.float32)
