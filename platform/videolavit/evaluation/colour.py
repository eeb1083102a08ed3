"""Colour of the shape in a synthetic video."""

import numpy as np
from numpy.typing import NDArray

from videolavit.synth import COLOURS

from .foreground import background_difference

FOREGROUND_SHARE = 0.004
"""Share of a frame's pixels that are taken for the shape: a little less than the smallest shape covers, so that its
soft edge is left out."""


def shape_colour(frames: NDArray[np.uint8]) -> str:
    """Name of the shape's colour, one of `synth.COLOURS`.

    The texture of a shape varies its brightness, so the median of its pixels is compared with each colour at the
    brightness that fits best.

    Args:
        frames: uint8 [time, height, width, 3].
    """
    pixels = frames.reshape(len(frames), -1, 3).astype(np.float64)
    difference = background_difference(frames).reshape(len(frames), -1)
    count = max(1, round(FOREGROUND_SHARE * pixels.shape[1]))
    chosen = np.argpartition(difference, -count, axis=1)[:, -count:]
    observed = np.median(np.take_along_axis(pixels, chosen[..., None], axis=1).reshape(-1, 3), axis=0)
    references = np.array(list(COLOURS.values()), np.float64)
    scale = np.clip(references @ observed / (references**2).sum(axis=1), 0.6, 1.2)
    distance = np.linalg.norm(observed - scale[:, None] * references, axis=1)
    return list(COLOURS)[int(distance.argmin())]
