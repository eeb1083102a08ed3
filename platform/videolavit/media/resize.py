"""Image resizing whose result does not depend on the version of Pillow."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_picture(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes uint8 [h, w, 3] to [height, width, 3] bicubically, without keeping the aspect ratio.

    The width is resized first, then the height, each with rounding, as Pillow does before version 13. Pillow 13 resizes
    the height first where that is faster: some values differ by one, and lead to other codes.
    """
    columns = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BICUBIC)
    return np.array(columns.resize((width, height), Image.Resampling.BICUBIC))
