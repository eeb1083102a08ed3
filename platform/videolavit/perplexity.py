"""Perplexity of discrete codes."""

import numpy as np
from numpy.typing import ArrayLike


def perplexity(counts: ArrayLike) -> float:
    """Computes how many equally frequent codes would have the same entropy; 0 without any code.

    Args:
        counts: Occurrences of each code.
    """
    occurring = np.asarray(counts, np.float64)
    occurring = occurring[occurring > 0]
    if not len(occurring):
        return 0.0
    shares = occurring / occurring.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
