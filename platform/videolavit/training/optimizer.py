"""AdamW with its schedule and gradient clipping, and the exponential moving average of the weights."""

import contextlib
from collections.abc import Iterator
from math import cos, inf, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from videolavit.models.objective import Objective

from .selection import check_patterns, lr_scale, trained
from .settings import OptimizerSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
WEIGHT_PREFIX = "model."
"""Beginning of the names of weights in checkpoints."""

AVERAGE_PREFIX = "average."
"""Beginning of the names of averaged weights in checkpoints."""


class Optimizer:
    """AdamW over the trainable parameters of an objective, with an average of the weights where `settings.ema` is set.

    Moments are allocated from the start, so that checkpoints of all steps hold the same tensors, including those of
    parameters that are trained in a later stage only.

    Args:
        steps: Steps of the whole schedule.

    Raises:
        DataError: nothing is trained, or a pattern of `lr_scales` matches no parameter that is.
    """

    def __init__(self, objective: Objective, settings: OptimizerSettings, steps: int) -> None:
        self._settings, self._steps = settings, steps
        self._parameters = trained(objective)
        check_patterns(settings.lr_scales, self._parameters, "optimizer.lr_scales")
        self._kept = [
            (self._parameters[name], rows) for name, rows in objective.kept_rows().items() if name in self._parameters
        ]
        partly = {id(value) for value, _ in self._kept}
        grouped: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in self._parameters.items():
            decay = settings.weight_decay if value.ndim > 1 and id(value) not in partly else 0.0
            grouped.setdefault((lr_scale(objective, name, settings.lr_scales), decay), []).append(value)
        groups = [
            {"params": values, "lr": settings.lr * scale, "scale": scale, "weight_decay": decay}
            for (scale, decay), values in grouped.items()
        ]
        self._adamw = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)
        for value in self._parameters.values():
            moments = (torch.zeros((), device=value.device), torch.zeros_like(value), torch.zeros_like(value))
            self._adamw.state[value] = dict(zip(MOMENTS, moments, strict=True))
        average = self._parameters.items() if settings.ema else ()
        self._average = {name: value.detach().clone() for name, value in average}

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer state and averaged weights, by the names they have in checkpoints."""
        tensors = {
            f"optimizer.{name}.{moment}": self._adamw.state[value][moment]
            for name, value in self._parameters.items()
            for moment in MOMENTS
        }
        return tensors | {f"{AVERAGE_PREFIX}{name}": value for name, value in self._average.items()}

    @torch.no_grad()
    def restart_average(self) -> None:
        """Begins the average at today's weights."""
        for name, average in self._average.items():
            average.copy_(self._parameters[name])

    def clip(self) -> Tensor:
        """Scales the gradient down to the largest allowed norm, if there is one, and returns the norm before.

        Rows that are kept have no part in it. The norm stays on the device: reading it would wait for the step.
        """
        for value, rows in self._kept:
            if value.grad is not None:
                _clear_rows(value.grad, rows)
        return full_tensor(nn.utils.clip_grad_norm_(list(self._parameters.values()), self._settings.clip or inf))

    @torch.no_grad()
    def step(self, number: int, norm: Tensor) -> None:
        """Updates weights and average in step `number`, counted from 0; nothing where the norm is not finite."""
        finite = norm.isfinite()
        self._adamw.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as GradScaler tells it
        factor = self.lr_factor(number)
        for group in self._adamw.param_groups:
            group["lr"] = self._settings.lr * group["scale"] * factor
        self._adamw.step()
        # a smaller decay in early steps, so that the first weights are soon forgotten
        decay = min(self._settings.ema, (1 + number) / (10 + number))
        share = finite.float() * (1 - decay)
        for name, average in self._average.items():
            average.lerp_(self._parameters[name].detach(), share)

    def zero_grad(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    def lr_factor(self, number: int) -> float:
        """Learning rate of step `number`, relative to the peak."""
        settings = self._settings
        if number < settings.warmup:
            return (number + 1) / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        done = (number - settings.warmup) / max(self._steps - 1 - settings.warmup, 1)
        left = (1 + cos(pi * min(done, 1))) / 2 if settings.schedule == "cosine" else 1 - min(done, 1)
        return settings.final + (1 - settings.final) * left

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Replaces the weights by their average in the body of the `with` statement; without `ema` they stay."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._average.items():
            kept = self._parameters[name].detach().clone()
            self._parameters[name].copy_(average)
            average.copy_(kept)


def _clear_rows(gradient: Tensor, rows: int) -> None:
    """Sets the first rows of a gradient, which may be sharded over ranks, to zero."""
    first = 0
    if isinstance(gradient, DTensor):
        _, offsets = compute_local_shape_and_global_offset(gradient.shape, gradient.device_mesh, gradient.placements)
        gradient, first = gradient.to_local(), offsets[0]
    gradient[: max(rows - first, 0)] = 0


def full_tensor(value: Any) -> Tensor:
    """A tensor that may be sharded over ranks, gathered."""
    tensor: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return tensor
