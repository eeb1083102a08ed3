"""Measures of how close a reconstruction is to its original."""

import numpy as np
from numpy.typing import NDArray


def psnr(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all values, in dB; infinite for equal arrays."""
    error = np.mean((original.astype(np.float64) - reconstruction) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(original: NDArray[np.uint8], reconstruction: NDArray[np.uint8]) -> float:
    """Structural similarity of two videos uint8 [time, height, width, 3], averaged over the frames; needs torch."""
    import torch  # here, so that importing videolavit.media loads no torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (torch.tensor(video).permute(0, 3, 1, 2).float() for video in (reconstruction, original))
    similarity = structural_similarity_index_measure(ours, theirs, data_range=255.0)
    assert isinstance(similarity, torch.Tensor)
    return float(similarity)


def explained_variance(original: NDArray[np.float32], reconstruction: NDArray[np.float32]) -> float:
    """Share of the motion's variance that a reconstruction explains: 1 for equal motion, 0 for its constant mean.

    Args:
        original: Displacements [clips, 2, ...]; the mean is taken over each of the two components.
        reconstruction: Displacements of the same shape.
    """
    axes = (0, *range(2, original.ndim))
    spread = original.astype(np.float64) - original.mean(axis=axes, keepdims=True, dtype=np.float64)
    error = original.astype(np.float64) - reconstruction
    return float(1 - (error**2).sum() / (spread**2).sum())
