"""Outputs of a module: results, intermediate values, gaps, and schedulers that record their calls."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Results:
    """A module's outputs and facts under the names that a pack gives them."""

    outputs: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def outputs_of(prefix: str = "", **modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects what modules give while the body runs, under their names behind a prefix; the last call counts."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[prefix + name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def gap(distances: Tensor) -> Tensor:
    """Distance [...] between the nearest and the second-nearest code of distances [..., codes]."""
    first, second = distances.topk(2, largest=False).values.unbind(-1)
    return second - first


@dataclass
class Steps:
    """Calls of a scheduler: guided predictions, their timesteps, and noise levels."""

    predictions: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)
    sigmas: Tensor | None = None


def remembering(kind: type, config: dict[str, Any]) -> tuple[Any, Steps]:
    """A scheduler of a kind, and the steps that it and its copies take."""
    steps = Steps()

    class Remembering(kind):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
            steps.predictions.append(model_output)
            steps.timesteps.append(timestep)
            steps.sigmas = getattr(self, "sigmas", None)
            return super().step(model_output, timestep, sample, **options)

    return Remembering(**config), steps


def as_array(output: Any) -> np.ndarray:
    return output.detach().cpu().numpy() if isinstance(output, torch.Tensor) else np.asarray(output)


def sampled(output: np.ndarray, stride: int) -> np.ndarray:
    """The elements of an output that a pack holds."""
    return output.reshape(-1)[::stride]
