"""Signal-to-noise ratio and explained variance against values that follow from their definitions."""

import numpy as np
import pytest

from videolavit.media.quality import explained_variance, psnr


def test_psnr_of_a_constant_difference() -> None:
    black, grey = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr(grey, black) == psnr(black, grey)
    assert psnr(grey, grey) == float("inf")


def test_explained_variance_counts_from_the_mean_of_each_component() -> None:
    motion = np.random.default_rng(0).normal(3, 2, (5, 2, 24, 4, 6)).astype(np.float32)
    motion[:, 1] += 10
    mean = np.broadcast_to(motion.mean(axis=(0, 2, 3, 4), keepdims=True), motion.shape)
    assert explained_variance(motion, motion) == 1
    assert explained_variance(motion, np.asarray(mean)) == pytest.approx(0, abs=1e-5)
    assert explained_variance(motion, (motion + mean) / 2) == pytest.approx(0.75, abs=1e-5)
    assert explained_variance(motion, np.zeros_like(motion)) < 0
