"""The colour of a synthetic video's shape."""

import numpy as np
from numpy.typing import NDArray

from videolavit.synth import COLOURS

from .foreground import difference

SHARE = 0.004
"""Of the pixels that are looked at: hardly less than the smallest shape has, which leaves out its soft edge."""


def colour(frames: NDArray[np.uint8]) -> str:
    """Name of the colour, among `synth.COLOURS`, of what differs most from the background.

    A shape's brightness varies over its texture; so what is seen is compared with each colour at the brightness that
    suits it best.

    Args:
        frames: uint8 [time, height, width, 3].
    """
    pixels = frames.reshape(len(frames), -1, 3).astype(np.float64)
    differing = difference(frames).reshape(len(frames), -1)
    count = max(1, round(SHARE * pixels.shape[1]))
    chosen = np.argpartition(differing, -count, axis=1)[:, -count:]
    seen = np.median(np.take_along_axis(pixels, chosen[..., None], axis=1).reshape(-1, 3), axis=0)
    references = np.array(list(COLOURS.values()), np.float64)
    scale = np.clip(references @ seen / (references**2).sum(axis=1), 0.6, 1.2)
    distance = np.linalg.norm(seen - scale[:, None] * references, axis=1)
    return list(COLOURS)[int(distance.argmin())]
