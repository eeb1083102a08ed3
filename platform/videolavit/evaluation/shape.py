"""Form of the shape in a synthetic video, by a small classifier that is trained on rendered shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from videolavit.media.resize import resize_picture
from videolavit.synth import OUTLINES, SynthSettings, draw_scene, render

from .foreground import background_difference

SIDE = 32
"""Side of the square that a silhouette is resized to, in pixels."""

EDGE = 0.4
"""Share of the largest difference from the background above which a pixel lies within the silhouette's frame."""

RENDERED, HELD_OUT = 1500, 300
"""Numbers of rendered pictures that a classifier is trained on, and that its accuracy is measured on."""

TRAINED_STEPS, BATCH = 300, 64
BLUR = (0.0, 1.2)
"""Range of the blur of training pictures, in pixels: what a model draws is softer than what was rendered."""

NAMES = list(OUTLINES)


@dataclass(frozen=True)
class ShapeClassifier:
    """Classifier of silhouettes.

    Args:
        network: Logits [batch, shapes] of silhouettes, float32 [batch, 1, SIDE, SIDE] from 0 to 1.
        accuracy: Share of held-out rendered pictures that it names rightly.
    """

    network: nn.Module
    accuracy: float

    @torch.inference_mode()
    def shape(self, frames: NDArray[np.uint8]) -> str:
        """Name of the shape in a video, one of `synth.OUTLINES`, by the mean of its frames' log-probabilities.

        Args:
            frames: uint8 [time, height, width, 3].
        """
        logits = self.network(_stack([silhouette(one) for one in background_difference(frames)]))
        return NAMES[int(logits.log_softmax(-1).mean(0).argmax())]


def train_shape_classifier(settings: SynthSettings, size: tuple[int, int], seed: int = 0) -> ShapeClassifier:
    """Trains a classifier on rendered pictures, in some ten seconds on a CPU core. The same seed gives the same one.

    Args:
        settings: Content of the pictures; one shape each.
        size: Height and width of the videos that will be classified, in pixels.
        seed: Seed of the pictures and of the training.
    """
    generator = np.random.default_rng(seed)
    silhouettes, shapes = _rendered(settings, size, seed, RENDERED + HELD_OUT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(32, 48, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(48 * (SIDE // 8) ** 2, len(NAMES)),
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(TRAINED_STEPS):
            chosen = generator.integers(RENDERED, size=BATCH)
            loss = F.cross_entropy(network(_disturbed(silhouettes[chosen], generator)), shapes[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    right = network(silhouettes[RENDERED:]).argmax(-1) == shapes[RENDERED:]
    return ShapeClassifier(network, float(right.float().mean()))


def silhouette(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cuts out the shape of a frame, float32 [SIDE, SIDE] from 0 to 1, with its sides' ratio kept.

    Args:
        difference: Difference from the background, [height, width].
    """
    inside = difference > EDGE * np.quantile(difference, 0.998)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.float32)
    half = max(rows[-1] - rows[0], columns[-1] - columns[0]) / 2 + 1.5
    top, left = (rows[0] + rows[-1] + 1) / 2 - half, (columns[0] + columns[-1] + 1) / 2 - half
    picture = Image.fromarray((difference / max(float(difference.max()), 1e-6)).astype(np.float32))
    box = (SIDE, SIDE), Image.Transform.EXTENT, (left, top, left + 2 * half, top + 2 * half)
    return np.asarray(picture.transform(*box, Image.Resampling.BILINEAR), np.float32)


def _rendered(settings: SynthSettings, size: tuple[int, int], seed: int, count: int) -> tuple[Tensor, Tensor]:
    scenes = [draw_scene(settings, seed, index) for index in range(count)]
    frames = (resize_picture(next(render(scene, settings)), *size) for scene in scenes)
    silhouettes = _stack([silhouette(background_difference(frame[None])[0]) for frame in frames])
    return silhouettes, torch.tensor([NAMES.index(scene.shapes[0].shape) for scene in scenes])


def _disturbed(silhouettes: Tensor, generator: np.random.Generator) -> Tensor:
    """Blurs silhouettes, shifts them by up to two pixels, and adds noise: what a model draws is not as clean."""
    sigma = float(generator.uniform(*BLUR)) + 1e-3
    places = torch.arange(-3, 4, dtype=torch.float32)
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    across = F.conv2d(silhouettes, kernel.view(1, 1, 1, -1), padding=(0, 3))
    blurred = F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(3, 0))
    shift = tuple(int(step) for step in generator.integers(-2, 3, size=2))
    noise = torch.from_numpy(generator.normal(0, 0.05, blurred.shape).astype(np.float32))
    return blurred.roll(shift, (-2, -1)) + noise


def _stack(silhouettes: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(silhouettes))[:, None]
