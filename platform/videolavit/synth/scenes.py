"""Scenes with known motion: textured shapes that move evenly over a textured, still background.

A model trained on them can be asked for "a large red circle moves right fast", and measured motion can be compared with
the true motion. Video number `index` depends on `[seed, index]` and the settings only.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, product
from math import cos, pi, sin
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 98, 224),
    "yellow": (242, 201, 30),
    "orange": (243, 124, 22),
    "purple": (140, 62, 190),
    "pink": (242, 128, 178),
    "white": (238, 238, 238),
}
SIZES = {"small": (0.18, 0.21), "large": (0.28, 0.32)}
"""Range of a shape's size, relative to the shorter side of the frame."""

SPEEDS = {"slow": (0.30, 0.34), "medium": (0.61, 0.67), "fast": (0.92, 1.0)}
"""Range of a shape's speed, relative to the fastest."""

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
ADVERBS = {"slow": "slowly", "medium": "at medium speed", "fast": "fast"}

MAX_FPS = 240
MIN_SIDE, MAX_SIDE = 96, 8192
"""Limits of a frame's sides, in pixels. In smaller frames no motion block fits into a small shape; the decomposition
rejects larger ones."""

_MARGIN = 4
"""Empty border around a sprite, in pixels, for its soft edge and for the taps of the interpolation."""

_EDGE = _MARGIN + 1
"""Distance between a shape and the edge of the frame, in pixels, so that its sprite is always inside."""

_GAP = 16
"""Distance between two shapes, in pixels: a block that contained both would have no single true motion."""

_PLACEMENTS = 100
_SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class SynthSettings:
    """Settings of synthetic videos.

    Args:
        width: Frame width, in pixels.
        height: Frame height, in pixels.
        fps: Frames per second.
        seconds: Length of a video, in seconds.
        speed: Speed of the fastest shapes, in shorter frame sides per second; medium is two thirds of it, slow a third.
        max_shapes: Largest number of shapes in a video, 1 or 2.
        shape_scale: Size of the shapes relative to `SIZES`, 0.75 to 2.
        split: Combinations of colour, shape and direction: `train` leaves some out and `held-out` has only those, so
            that they show whether a model composes; `all` has every combination.
        held_out_share: Share of the combinations that are held out, from 0 to 1.
        background_contrast: Contrast of the background's texture, from 0, which is plain, to 1; a larger contrast also
            makes backgrounds differ more. Random texture takes most of a small model's tokens.
    """

    width: int = 320
    height: int = 192
    fps: int = 24
    seconds: float = 4.0
    speed: float = 0.15
    max_shapes: int = 2
    shape_scale: float = 1.0
    split: Literal["all", "train", "held-out"] = "all"
    held_out_share: float = 0.15
    background_contrast: float = 0.45

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            if not MIN_SIDE <= getattr(self, name) <= MAX_SIDE:
                raise ValueError(f"{name} must be {MIN_SIDE} to {MAX_SIDE} pixels, not {getattr(self, name)}")
        if not 1 <= self.fps <= MAX_FPS:
            raise ValueError(f"fps must be 1 to {MAX_FPS}, not {self.fps}")
        if not self.speed > 0:
            raise ValueError(f"speed must be above 0, not {self.speed:g}")
        if not self.seconds >= 2 / self.fps:
            raise ValueError(f"seconds must be at least {2 / self.fps:g} (two frames), not {self.seconds:g}")
        if not 1 <= self.max_shapes <= 2:
            raise ValueError(f"max_shapes must be 1 or 2, not {self.max_shapes}")
        if not 0.75 <= self.shape_scale <= 2:
            raise ValueError(f"shape_scale must be 0.75 to 2, not {self.shape_scale:g}")
        if not 0 <= self.background_contrast <= 1:
            raise ValueError(f"background_contrast must be from 0 to 1, not {self.background_contrast:g}")
        if self.split != "all":
            self._check_split()
        room = self.side * (1 - SIZES["large"][1] * self.shape_scale) - 2 * _EDGE
        longest = room / (self.speed * self.side)
        if self.seconds > longest:
            raise ValueError(
                f"a large shape at speed {self.speed:g} leaves the picture within {self.seconds:g} seconds; "
                f"use at most {_floor(longest)} seconds, or at most speed {_floor(room / self.side / self.seconds)}"
            )

    def _check_split(self) -> None:
        """Checks that both splits have videos, and that `train` has every colour, shape and direction."""
        every = list(product(COLOURS, OUTLINES, DIRECTIONS))
        train = [names for names in every if not is_held_out(*names, self.held_out_share)]
        complete = len({name for names in train for name in names}) == len({name for names in every for name in names})
        if not complete or len(train) == len(every):
            raise ValueError(
                f"held_out_share {self.held_out_share:g} holds out no combination, or every one with some colour, "
                "shape or direction; use about 0.15"
            )

    def has(self, shape: "MovingShape") -> bool:
        """Tells whether the split has videos with such a shape."""
        if self.split == "all":
            return True
        held_out = is_held_out(shape.colour, shape.shape, shape.direction, self.held_out_share)
        return held_out == (self.split == "held-out")

    @property
    def side(self) -> int:
        """Shorter side of the frame, in pixels."""
        return min(self.width, self.height)

    @property
    def num_frames(self) -> int:
        return round(self.seconds * self.fps)


@dataclass(frozen=True, kw_only=True)
class MovingShape:
    """Shape and its true motion.

    Attributes:
        size_name: Size in the caption: a key of `SIZES`.
        colour: Colour in the caption: a key of `COLOURS`.
        shape: Form in the caption: a key of `OUTLINES`.
        direction: Direction in the caption: a key of `DIRECTIONS`.
        speed: Speed in the caption: a key of `SPEEDS`.
        size: Side of the square that encloses the shape, in pixels.
        x: Horizontal position of the centre at time 0, in pixels from the left edge of the frame.
        y: Vertical position of the centre at time 0, in pixels from the top edge of the frame.
        velocity: (x, y), in pixels per second; y points down.
    """

    size_name: str
    colour: str
    shape: str
    direction: str
    speed: str
    size: float
    x: float
    y: float
    velocity: Point

    @property
    def text(self) -> str:
        return f"a {self.size_name} {self.colour} {self.shape} moves {self.direction} {ADVERBS[self.speed]}"

    def centre(self, seconds: float) -> Point:
        """Returns the centre at a time, in pixels."""
        return self.x + self.velocity[0] * seconds, self.y + self.velocity[1] * seconds

    def outline(self, seconds: float, scale: float = 1.0) -> list[Point]:
        """Returns the corners at a time, in pixels, for `scale` times the size."""
        x, y = self.centre(seconds)
        return [(x + u * self.size * scale, y + v * self.size * scale) for u, v in OUTLINES[self.shape]]


@dataclass(frozen=True)
class Scene:
    """Content of a video.

    Attributes:
        shapes: One or two shapes of different colours that never touch.
        texture_seed: Seed of the background and the textures.
    """

    shapes: tuple[MovingShape, ...]
    texture_seed: int

    @property
    def text(self) -> str:
        """Caption: size, colour, shape, direction and speed of every shape."""
        return "; ".join(shape.text for shape in self.shapes)

    def truth(self) -> list[dict[str, Any]]:
        """Returns the shapes as JSON values, of the same types in every scene."""
        return [asdict(shape) for shape in self.shapes]


# ---- content ------------------------------------------------------------------------------------------------------


def draw_scene(settings: SynthSettings, seed: int, index: int) -> Scene:
    """Draws the scene of video number `index` of a seed; it does not depend on the number of videos.

    Raises:
        ValueError: a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be at least 0, not {seed} and {index}")
    rng = np.random.default_rng([seed, index])
    shapes = _draw_shapes(rng, settings, int(rng.integers(1, settings.max_shapes + 1)))
    return Scene(shapes, int(rng.integers(2**63)))


def is_held_out(colour: str, shape: str, direction: str, share: float) -> bool:
    """Tells whether a combination is held out; this depends on its names and the share, not on a seed."""
    digest = hashlib.blake2b(f"{colour}/{shape}/{direction}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _draw_shapes(rng: np.random.Generator, settings: SynthSettings, count: int) -> tuple[MovingShape, ...]:
    for _ in range(_PLACEMENTS):
        shapes = tuple(_draw_shape_of_split(rng, settings) for _ in range(count))
        if all(_apart(a, b, settings) for a, b in combinations(shapes, 2)):
            return shapes
    return (_draw_shape_of_split(rng, settings),)


def _draw_shape_of_split(rng: np.random.Generator, settings: SynthSettings) -> MovingShape:
    while not settings.has(shape := _draw_shape(rng, settings)):
        pass
    return shape


def _draw_shape(rng: np.random.Generator, settings: SynthSettings) -> MovingShape:
    size_name, speed, direction = _one_of(rng, SIZES), _one_of(rng, SPEEDS), _one_of(rng, DIRECTIONS)
    size = _exact(rng.uniform(*SIZES[size_name]) * settings.shape_scale * settings.side)
    rate = rng.uniform(*SPEEDS[speed]) * settings.speed * settings.side
    vx, vy = (_exact(rate * step) for step in DIRECTIONS[direction])
    return MovingShape(
        size_name=size_name,
        colour=_one_of(rng, COLOURS),
        shape=_one_of(rng, OUTLINES),
        direction=direction,
        speed=speed,
        size=size,
        x=_draw_start(rng, settings.width, size, vx * settings.seconds),
        y=_draw_start(rng, settings.height, size, vy * settings.seconds),
        velocity=(vx, vy),
    )


def _draw_start(rng: np.random.Generator, length: int, size: float, travel: float) -> float:
    """Draws the start of a centre along an axis, so that the shape is inside the frame at the start and at the end."""
    nearest = _EDGE + size / 2
    return _exact(rng.uniform(nearest + max(0.0, -travel), length - nearest - max(0.0, travel)))


def _apart(a: MovingShape, b: MovingShape, settings: SynthSettings) -> bool:
    if a.colour == b.colour:
        return False
    seconds = np.arange(settings.num_frames) / settings.fps
    across = np.abs(a.x - b.x + (a.velocity[0] - b.velocity[0]) * seconds)
    along = np.abs(a.y - b.y + (a.velocity[1] - b.velocity[1]) * seconds)
    return bool((np.maximum(across, along) >= (a.size + b.size) / 2 + _GAP).all())


def _one_of(rng: np.random.Generator, names: dict[str, Any]) -> str:
    return list(names)[int(rng.integers(len(names)))]


def _exact(value: float) -> float:
    """Rounds a value so that it is short in JSON and rendered exactly as the manifest says; never a negative zero."""
    return round(float(value), 3) + 0.0


def _floor(value: float) -> str:
    return f"{np.floor(value * 1000) / 1000:g}"


# ---- rendering ----------------------------------------------------------------------------------------------------


def render(scene: Scene, settings: SynthSettings) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames of a scene, uint8 [height, width, 3]; frame k shows time k / fps."""
    rng = np.random.default_rng(scene.texture_seed)
    background = _background(rng, settings)
    sprites = [_sprite(rng, shape) for shape in scene.shapes]
    for index in range(settings.num_frames):
        picture = background.copy()
        for shape, sprite in zip(scene.shapes, sprites, strict=True):
            _paste(picture, sprite, shape.centre(index / settings.fps))
        yield np.rint(picture).clip(0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, settings: SynthSettings) -> NDArray[np.float32]:
    """Draws a background, float32 [height, width, 3], dark and muted so that it is not taken for a shape."""
    tint = rng.uniform(75, 105) + rng.uniform(-14, 14, 3)
    tint = 90 + (tint - 90) * settings.background_contrast / SynthSettings.background_contrast
    texture = _texture(rng, settings.height, settings.width, (32, 5))
    return (tint * (1 + settings.background_contrast * texture[..., None])).astype(np.float32)


def _sprite(rng: np.random.Generator, shape: MovingShape) -> NDArray[np.float32]:
    """Draws a shape in the middle of a sprite, float32 [side, side, 4]: colour multiplied by opacity, and opacity."""
    side = int(np.ceil(shape.size)) + 2 * _MARGIN
    opacity, inner = (_coverage(shape, side, inset) for inset in (0.0, 4.0))
    light = (0.9 + 0.3 * _texture(rng, side, side, (14, 6))) * (0.6 + 0.4 * inner)
    colour = np.array(COLOURS[shape.colour]) * light[..., None]
    return np.dstack([colour.clip(0, 255) * opacity[..., None], opacity]).astype(np.float32)


def _coverage(shape: MovingShape, side: int, inset: float) -> NDArray[np.float32]:
    """Computes the share of each pixel that a shape covers when it is `inset` pixels smaller, float32 [side, side]."""
    scale = (shape.size - inset) * _SUPERSAMPLING
    middle = side * _SUPERSAMPLING / 2
    mask = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    ImageDraw.Draw(mask).polygon([(middle + u * scale, middle + v * scale) for u, v in OUTLINES[shape.shape]], fill=255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BILINEAR), np.float32) / np.float32(255)


def _texture(rng: np.random.Generator, height: int, width: int, spots: tuple[int, int]) -> NDArray[np.float32]:
    """Draws smooth noise of mean 0 within about -1 to 1, with coarse and fine spots (pixels), float32 [height, width].

    Coarse spots lead the encoder's step-by-step search to the right displacement, fine ones make it exact.
    """
    return 0.6 * _noise(rng, height, width, spots[0]) + 0.4 * _noise(rng, height, width, spots[1])


def _noise(rng: np.random.Generator, height: int, width: int, spot: int) -> NDArray[np.float32]:
    grid = rng.uniform(-1, 1, (-(-height // spot) + 1, -(-width // spot) + 1)).astype(np.float32)
    size = (grid.shape[1] * spot, grid.shape[0] * spot)
    return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))[:height, :width]


def _paste(picture: NDArray[np.float32], sprite: NDArray[np.float32], centre: Point) -> None:
    """Draws a sprite over a frame, in place, with its middle at the centre."""
    side = len(sprite)
    left, top = (int(np.floor(value - side / 2)) for value in centre)
    shifted = _shifted(_shifted(sprite, centre[0] - side / 2 - left, axis=1), centre[1] - side / 2 - top, axis=0)
    under = picture[top : top + side, left : left + side]
    under *= 1 - shifted[..., 3:]
    under += shifted[..., :3]


def _shifted(image: NDArray[np.float32], shift: float, axis: int) -> NDArray[np.float32]:
    """Moves an image with an empty margin by 0 to 1 pixels, with a cubic (Catmull-Rom) interpolation."""
    s = shift
    weights = {
        -1: 0.5 * (s**3 - s**2),
        0: 0.5 * (3 * s**3 - 5 * s**2 + 2),
        1: 0.5 * (-3 * s**3 + 4 * s**2 + s),
        2: 0.5 * (-(s**3) + 2 * s**2 - s),
    }
    result = np.zeros_like(image)
    for step, weight in weights.items():
        result += np.float32(weight) * np.roll(image, step, axis)
    return result


def _regular(corners: int, radii: tuple[float, ...] = (0.5,)) -> list[Point]:
    """Computes a polygon with its first corner at the top; the distances of its corners alternate between the radii."""
    angles = [2 * pi * corner / corners for corner in range(corners)]
    return [(radii[i % len(radii)] * sin(a), -radii[i % len(radii)] * cos(a)) for i, a in enumerate(angles)]


OUTLINES: dict[str, list[Point]] = {
    "circle": _regular(72),
    "square": [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)],
    "triangle": [(0.0, -0.46), (0.5, 0.42), (-0.5, 0.42)],
    "diamond": _regular(4),
    "star": _regular(10, (0.5, 0.24)),
}
"""Corners of each shape, within a unit square around its centre; y points down."""
