"""Pictures to another size, with the same bytes under every version of Pillow."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_picture(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] -> [height, width, 3], bicubic; the aspect ratio is not kept.

    Columns first, then rows, each rounded. Pillow always did so before version 13, which takes rows first where that is
    faster: a level's difference here and there, and with it other codes.
    """
    columns = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BICUBIC)
    return np.array(columns.resize((width, height), Image.Resampling.BICUBIC))
