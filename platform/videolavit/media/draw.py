"""Drawings of motion vectors over images, and contact sheets."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from .settings import BLOCK

ARROW = (255, 214, 10)
OUTLINE = (20, 20, 20)
MAX_CAPTION = 1000
"""Characters of a caption that are looked at, more than fit below any picture."""


def draw_motion(
    image: NDArray[np.uint8], motion: NDArray[np.int16], *, spacing: int = 2, scale: float = 2.0
) -> NDArray[np.uint8]:
    """Draws a motion field over an image as arrows in the direction of the motion.

    Args:
        image: uint8 [height, width, 3].
        motion: int16 [blocks_high, blocks_wide, 2] in half pixels (one frame, or a sum of frames).
        spacing: Blocks per arrow, in each direction; the arrow is the mean of their vectors.
        scale: Length of an arrow, relative to the displacement that it shows.

    Returns:
        New image, uint8 [height, width, 3].
    """
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    high, wide = motion.shape[:2]
    for top in range(0, high, spacing):
        for left in range(0, wide, spacing):
            cell = motion[top : top + spacing, left : left + spacing].reshape(-1, 2)
            dx, dy = cell.mean(axis=0) / 2 * scale
            if math.hypot(dx, dy) < 1.5:
                continue
            x, y = (left + spacing / 2) * BLOCK, (top + spacing / 2) * BLOCK
            _arrow(pen, x - dx / 2, y - dy / 2, dx, dy)
    return np.asarray(canvas)


def arrow_style(motion: NDArray[Any], width: int) -> dict[str, Any]:
    """Spacing and scale for `draw_motion`: some twenty arrows in a row, the longest a sixteenth of the picture.

    Args:
        motion: Motion in half pixels, [..., blocks_high, blocks_wide, 2].
        width: Width of the picture, in pixels.
    """
    longest = float(np.percentile(np.hypot(motion[..., 0], motion[..., 1]), 98)) / 2
    scale = max(1.0, width / BLOCK / longest) if longest else 1.0
    return {"spacing": max(1, round(width / BLOCK / 20)), "scale": min(scale, 8.0)}


def _arrow(pen: ImageDraw.ImageDraw, x: float, y: float, dx: float, dy: float) -> None:
    length = math.hypot(dx, dy)
    ux, uy = dx / length, dy / length
    head = min(8.0, 0.5 * length + 1)
    tip = (x + dx, y + dy)
    cos, sin = 0.87 * head, 0.5 * head  # wings at 30 degrees
    wings = [(tip[0] - cos * ux + s * uy, tip[1] - cos * uy - s * ux) for s in (sin, -sin)]
    for colour, width in ((OUTLINE, 4), (ARROW, 2)):
        pen.line([(x, y), tip], fill=colour, width=width)
        pen.line([wings[0], tip, wings[1]], fill=colour, width=width)


@dataclass(frozen=True, eq=False)
class Cell:
    """A captioned picture of a contact sheet.

    Attributes:
        picture: uint8 [height, width, 3].
    """

    picture: NDArray[np.uint8]
    caption: str


def contact_sheet(cells: Sequence[Cell], *, columns: int = 4, cell_width: int = 320) -> NDArray[np.uint8]:
    """Arranges captioned pictures on a sheet.

    Args:
        cells: Pictures and their captions.
        columns: Number of images in a row.
        cell_width: Width to which each image is scaled, in pixels.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: there are no cells.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one picture")
    margin, caption_height = 8, 18
    columns = min(columns, len(cells))
    box = (cell_width, cell_width * 3 // 4)
    pictures = [ImageOps.contain(Image.fromarray(cell.picture), box) for cell in cells]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    pitches = [max(picture.height for picture in row) + caption_height + margin for row in rows]
    sheet = Image.new("RGB", (columns * (cell_width + margin) + margin, sum(pitches) + margin), (250, 250, 250))
    pen = ImageDraw.Draw(sheet)
    for index, (picture, cell) in enumerate(zip(pictures, cells, strict=True)):
        row, column = divmod(index, columns)
        left, top = margin + column * (cell_width + margin), margin + sum(pitches[:row])
        sheet.paste(picture, (left, top))
        below = top + pitches[row] - caption_height - margin + 2
        pen.text((left, below), _fitting(pen, cell.caption, cell_width), fill=(40, 40, 40))
    return np.asarray(sheet)


def _fitting(pen: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Cuts a text to a width in pixels."""
    text = " ".join(text.split()).encode("latin-1", "replace").decode("latin-1")  # the built-in font has no more
    text, is_whole = text[:MAX_CAPTION], len(text) <= MAX_CAPTION
    if is_whole and pen.textlength(text) <= width:
        return text

    def width_of(end: int) -> int:
        return math.ceil(pen.textlength(f"{text[: end + 1]}..."))

    longest = bisect.bisect_right(range(len(text)), width, key=width_of)
    return text[:longest] + "..."
