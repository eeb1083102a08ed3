"""AdamW with complete state from the start, its schedule, clipping, and averaged weights."""

import contextlib
from collections.abc import Iterator
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from videolavit.models.objective import Objective

from .settings import OptimizerSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW over the trainable parameters of an objective.

    The moments exist from the start, so that a checkpoint has the same tensors at any step, also of parameters that
    only a later stage trains.
    """

    def __init__(self, objective: Objective, settings: OptimizerSettings, steps: int) -> None:
        self.settings, self._steps = settings, steps
        self.named = {name: value for name, value in objective.named_parameters() if value.requires_grad}
        self._scales = {name: objective.lr_scale(name) for name in self.named}
        groups = [
            {"params": names, "lr": settings.lr * scale, "scale": scale, "weight_decay": decay}
            for (scale, decay), names in self._grouped().items()
        ]
        self.adamw = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
        for value in self.named.values():
            moments = (torch.zeros(()), torch.zeros_like(value), torch.zeros_like(value))
            self.adamw.state[value] = dict(zip(MOMENTS, moments, strict=True))

    def _grouped(self) -> dict[tuple[float, float], list[nn.Parameter]]:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in self.named.items():
            decay = self.settings.weight_decay if value.ndim > 1 else 0.0
            groups.setdefault((self._scales[name], decay), []).append(value)
        return groups

    def state(self) -> dict[str, Tensor]:
        """The moments by parameter."""
        return {
            f"{name}.{moment}": self.adamw.state[value][moment]
            for name, value in self.named.items()
            for moment in MOMENTS
        }

    def clip(self) -> Tensor:
        """Scales the gradient down to the largest allowed norm, and returns the norm that it had."""
        norm = nn.utils.clip_grad_norm_(list(self.named.values()), self.settings.clip)
        return whole(norm)

    def step(self, number: int) -> None:
        """Step `number`, counted from 0."""
        factor = self.factor(number)
        for group in self.adamw.param_groups:
            group["lr"] = self.settings.lr * group["scale"] * factor
        self.adamw.step()

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def factor(self, number: int) -> float:
        """Learning rate of a step, relative to the peak."""
        settings = self.settings
        if number < settings.warmup:
            return (number + 1) / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        done = (number - settings.warmup) / max(self._steps - 1 - settings.warmup, 1)
        left = (1 + cos(pi * min(done, 1))) / 2 if settings.schedule == "cosine" else 1 - min(done, 1)
        return settings.final + (1 - settings.final) * left


class AveragedWeights:
    """An exponential moving average of the trainable parameters.

    Args:
        decay: Of the average; early on it is less, so that the start is forgotten.
    """

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self._named, self._decay = named, decay
        self.values = {name: value.detach().clone() for name, value in named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights in, after optimizer step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, average in self.values.items():
            average.lerp_(self._named[name].detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in place of the weights, for as long as the body lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.values.items():
            kept = self._named[name].detach().clone()
            self._named[name].copy_(average)
            average.copy_(kept)


def whole(value: Any) -> Tensor:
    """A tensor that may be spread over ranks, as one."""
    tensor: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor
