"""The pixels of a synthetic video's shape."""

import numpy as np
from numpy.typing import NDArray


def difference(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How far each pixel is from its frame's background, float32 [time, height, width].

    The background of a synthetic video has hardly any colour and no bright spots, and is most of the picture.

    Args:
        frames: uint8 [time, height, width, 3].
    """
    background = np.median(frames, axis=(1, 2), keepdims=True)
    return np.asarray(np.abs(frames - background).max(axis=-1), np.float32)
