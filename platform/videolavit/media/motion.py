"""Motion vectors as block grids, and block grids as input of the motion tokenizer."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .settings import BLOCK, CLIP_FRAMES

VECTOR_STD = (0.0993703, 0.1130276)
"""Standard deviation of x and y displacements relative to the frame size (published model's constants; mean 0)."""

TOKENIZER_SCALE = 10.0
"""Factor by which the motion tokenizer's input is larger than the video U-Net's."""

FILLED_FRAME = 12
"""Index of a clip's second I frame, which has no vectors. The published model interpolates it for every clip."""


def motion_grid(
    vectors: NDArray[Any] | None, height: int, width: int, dtype: Any = np.int16
) -> tuple[NDArray[Any], int]:
    """Arranges exported motion vectors on the block grid.

    Args:
        vectors: Structured array with libavutil's AVMotionVector fields, or None.
        height: Frame height, in pixels.
        width: Frame width, in pixels.
        dtype: Type of the grid. The mpeg4 encoder's vectors are whole half pixels, which int16 holds exactly.

    Returns:
        [ceil(height/16), ceil(width/16), 2] of `source * (motion_x, motion_y)` in half pixels, and the number of
        blocks with a vector.
    """
    grid = np.zeros((-(-height // BLOCK), -(-width // BLOCK), 2), dtype)
    if vectors is None or len(vectors) == 0:
        return grid, 0
    rows, columns = vectors["dst_y"] // BLOCK, vectors["dst_x"] // BLOCK
    half_pixels = 2 * vectors["source"] / vectors["motion_scale"]
    grid[rows, columns, 0] = half_pixels * vectors["motion_x"]
    grid[rows, columns, 1] = half_pixels * vectors["motion_y"]
    return grid, len(vectors)


def normalize_motion(motion: NDArray[Any], width: int, height: int, rescale: bool = True) -> NDArray[np.float32]:
    """Divides vectors by the frame size and by the published standard deviation; float32.

    Args:
        motion: [..., 2] in half pixels.
        width: Frame width, in pixels.
        height: Frame height, in pixels.
        rescale: True for the tokenizer's scale, False for the video U-Net's (ten times smaller).
    """
    scale = np.array([0.5 / (width * VECTOR_STD[0]), 0.5 / (height * VECTOR_STD[1])])
    if rescale:
        scale *= TOKENIZER_SCALE
    return np.asarray(motion * scale, np.float32)


def motion_features(
    motion: NDArray[Any],
    width: int,
    height: int,
    size: tuple[int, int] = (20, 36),
    *,
    rescale: bool = True,
    antialias: bool = False,
) -> NDArray[np.float32]:
    """Computes the motion tokenizer's input for a clip.

    The motion is divided by the frame size, frame 12 is replaced by the mean of its neighbours, and the grid is resized
    bicubically.

    Args:
        motion: [frames, blocks_high, blocks_wide, 2] in half pixels, up to 24 frames; missing ones have no motion.
        width: Width of the frame that the vectors belong to, in pixels.
        height: Height of that frame, in pixels.
        size: (height, width) of the result: 20 x 36 for the tokenizer, the latent size for the video U-Net.
        rescale: False for the video U-Net's scale, ten times smaller.
        antialias: True to resize with antialiasing; the published model does not.

    Returns:
        float32 [2, 24, size[0], size[1]]; channel 0 is x.

    Raises:
        ValueError: the array has another shape, or the grid does not fit the frame size.
    """
    blocks = (-(-height // BLOCK), -(-width // BLOCK))
    if motion.ndim != 4 or motion.shape[1:] != (*blocks, 2) or len(motion) > CLIP_FRAMES:
        raise ValueError(
            f"motion of a {width} x {height} clip must be [up to {CLIP_FRAMES}, {blocks[0]}, {blocks[1]}, 2], "
            f"not {list(motion.shape)}"
        )
    clip = np.zeros((CLIP_FRAMES, *blocks, 2), np.float32)
    clip[: len(motion)] = normalize_motion(motion, width, height, rescale)
    clip[FILLED_FRAME] = (clip[FILLED_FRAME - 1] + clip[FILLED_FRAME + 1]) / 2
    rows = _bicubic_weights(blocks[0], size[0], antialias)
    columns = _bicubic_weights(blocks[1], size[1], antialias)
    return np.asarray(rows @ clip.transpose(3, 0, 1, 2) @ columns.T, np.float32)


@functools.cache
def _bicubic_weights(source: int, target: int, antialias: bool) -> NDArray[np.float64]:
    """Computes the weights [target, source] of a one-dimensional bicubic resize, pixel centres aligned as in PyTorch.

    Without antialiasing the kernel has a = -0.75 and repeats edge values; with it, a = -0.5, widens when shrinking
    and is cut at the edges, as Pillow does.
    """
    weights = np.zeros((target, source))
    scale = source / target
    a, width = (-0.5, max(scale, 1.0)) if antialias else (-0.75, 1.0)
    for i in range(target):
        centre = (i + 0.5) * scale
        if antialias:
            taps = np.arange(max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), source))
        else:
            taps = np.floor(centre - 0.5) + np.arange(-1, 3)
        values = _cubic((taps + 0.5 - centre) / width, a)
        if antialias:
            values /= values.sum()
        np.add.at(weights[i], np.clip(taps, 0, source - 1).astype(int), values)
    return weights


def _cubic(x: NDArray[np.floating[Any]], a: float) -> NDArray[np.floating[Any]]:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def motion_score(motion: NDArray[np.int16], num_vectors: NDArray[Any], width: int, height: int) -> float:
    """Computes the mean displacement per frame of the blocks with a vector, in percent of the frame's diagonal.

    Args:
        motion: int16 [frames, blocks_high, blocks_wide, 2] in half pixels.
        num_vectors: [frames], number of blocks with a vector.
        width: Frame width, in pixels.
        height: Frame height, in pixels.
    """
    total = float(np.sum(np.hypot(motion[..., 0].astype(np.float32), motion[..., 1].astype(np.float32)))) / 2
    blocks = int(np.sum(num_vectors))
    return 100 * total / blocks / float(np.hypot(width, height)) if blocks else 0.0
