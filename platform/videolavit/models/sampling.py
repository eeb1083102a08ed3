"""What both samplers share: schedulers without shared state, guidance, pictures in and out of a VAE."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OnStep = Callable[[int, int], Sequence[int] | None]
"""Called after each denoising step with (steps done, steps in all). It may raise to stop, or return the rows of the
batch that are still wanted: the others are left out from then on, and of the result."""


def fresh(scheduler: Any, num_steps: int, device: torch.device) -> Any:
    """A copy of a scheduler set up for one sampling: schedulers count their steps, so none is shared."""
    copy = type(scheduler).from_config(scheduler.config)
    copy.set_timesteps(num_steps, device=device)
    return copy


def guide(prediction: Tensor, scale: Tensor | float) -> Tensor:
    """Classifier-free guidance of a doubled batch, the unconditional half first."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Normal noise [len(generators), *shape], each row from its own generator, so that batching changes nothing."""
    rows = [torch.randn(shape, generator=one, device=one.device) for one in generators]
    return torch.stack([row.to(like.device) for row in rows]).to(like.dtype)


def to_signed(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [batch, height, width, 3] -> float32 [batch, 3, height, width] in -1 .. 1."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def to_pixels(signed: Tensor) -> NDArray[np.uint8]:
    """Float [batch, 3, height, width] in -1 .. 1 -> uint8 [batch, height, width, 3]."""
    pixels = ((signed.float() / 2 + 0.5).clamp(0, 1) * 255).round()
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


@contextlib.contextmanager
def vae_dtype(vae: Any) -> Iterator[torch.dtype]:
    """The dtype to run a VAE in: float32 for one that overflows in float16, for as long as the body lasts."""
    stored = vae.dtype
    upcast = stored == torch.float16 and vae.config.force_upcast
    if upcast:
        torch.nn.Module.to(vae, torch.float32)  # the library's own `to` remarks on it every time
    try:
        yield vae.dtype
    finally:
        if upcast:
            torch.nn.Module.to(vae, stored)


def check_size(height: int, width: int, multiple: int) -> None:
    """Raises ValueError unless both sides are multiples."""
    if height < multiple or width < multiple or height % multiple or width % multiple:
        raise ValueError(f"width and height must be multiples of {multiple}, not {width} x {height}")
