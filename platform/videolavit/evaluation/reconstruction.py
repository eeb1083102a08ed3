"""How much of an original a reconstruction keeps."""

import numpy as np
from numpy.typing import NDArray


def psnr(original: NDArray[np.uint8], ours: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all values, in dB; infinite for equal arrays."""
    error = np.mean((original.astype(np.float64) - ours) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def explained_variance(original: NDArray[np.float32], ours: NDArray[np.float32]) -> float:
    """Share of the motion's variance that a reconstruction explains: 1 if equal, 0 for what a constant would reach.

    Args:
        original, ours: [clips, 2, ...], displacements; the mean is taken over each of the two components.
    """
    axes = (0, *range(2, original.ndim))
    spread = original.astype(np.float64) - original.mean(axis=axes, keepdims=True, dtype=np.float64)
    error = original.astype(np.float64) - ours
    return float(1 - (error**2).sum() / (spread**2).sum())
