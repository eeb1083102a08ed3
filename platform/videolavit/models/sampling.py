"""Helpers of both samplers: schedulers without shared state, guidance, and pictures to and from a VAE."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

OnStep = Callable[[int, int], Sequence[int] | None]
"""Called after each denoising step with (steps done, steps in all). It may raise to stop sampling, or return the rows
of the batch to keep: the others are dropped from the next step on, and from the result."""


def prepared_scheduler(scheduler: Any, num_steps: int, device: torch.device) -> Any:
    """Copies a scheduler for one sampling. Schedulers count their steps, so none is shared."""
    copy = type(scheduler).from_config(scheduler.config)
    copy.set_timesteps(num_steps, device=device)
    return copy


def apply_guidance(prediction: Tensor, scale: Tensor | float) -> Tensor:
    """Applies classifier-free guidance to a doubled batch whose first half is unconditional."""
    unconditional, conditional = prediction.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def draw_noise(shape: tuple[int, ...], generators: list[torch.Generator], like: Tensor) -> Tensor:
    """Draws normal noise [len(generators), *shape], each row from its own generator: batching changes nothing."""
    rows = [torch.randn(shape, generator=one, device=one.device) for one in generators]
    return torch.stack([row.to(like.device) for row in rows]).to(like.dtype)


def to_signed(pictures: NDArray[np.uint8]) -> Tensor:
    """Converts uint8 pictures [batch, height, width, 3] to float32 [batch, 3, height, width] from -1 to 1."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def to_pixels(signed: Tensor) -> NDArray[np.uint8]:
    """Converts pictures [batch, 3, height, width] from -1 to 1 to uint8 [batch, height, width, 3]."""
    pixels = ((signed.float() / 2 + 0.5).clamp(0, 1) * 255).round()
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


@contextlib.contextmanager
def vae_dtype(vae: Any) -> Iterator[torch.dtype]:
    """Yields the data type to run a VAE in, which is float32 while the body runs if float16 would overflow."""
    stored = vae.dtype
    upcast = stored == torch.float16 and vae.config.force_upcast
    if upcast:
        torch.nn.Module.to(vae, torch.float32)  # diffusers' own `to` logs a message every time
    try:
        yield vae.dtype
    finally:
        if upcast:
            torch.nn.Module.to(vae, stored)


def check_size(height: int, width: int, multiple: int) -> None:
    """Raises ValueError unless both sides, in pixels, are multiples of a number."""
    if height < multiple or width < multiple or height % multiple or width % multiple:
        raise ValueError(f"width and height must be multiples of {multiple}, not {width} x {height}")
