"""What a training objective is: networks and their loss, on one device, without a word of parallelism.

A trainer knows nothing else of a model. The loss of a step is the sum of its terms, each the sum over the step's valid
positions divided by their number over all ranks and micro batches; so an objective returns sums, and a batch says its
numbers of valid positions beforehand.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity in a single process."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro batch, made on the CPU.

    Args:
        inputs: Tensors for `Objective.forward`, moved to the device by the trainer.
        counts: Valid positions of every term that the objective returns. They are known before the forward pass, so
            that a step can divide by their global sum.
        positions: Of each sample in the data order. They name a sample's random numbers.
        tokens: Useful tokens (or samples) of each source, for telemetry.
        size: Positions that are computed, padding included; 0 where there is no padding to speak of.
        flops: Floating-point operations of a forward and backward pass over the useful positions; 0 if not counted.
        weight: 0 for a stand-in that keeps a rank in step with the others while none of its samples can be used.
    """

    inputs: dict[str, Tensor]
    counts: dict[str, float]
    positions: list[int]
    tokens: dict[str, int] = field(default_factory=dict)
    size: int = 0
    flops: float = 0.0
    weight: float = 1.0


class Draws:
    """Random numbers of a batch, by sample: those of one depend on seed, purpose and position in the data order only.

    So they are the same on any rank, in any batch, and after a restart.
    """

    def __init__(self, seed: int, positions: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seed, self._positions, self._device = seed, list(positions), torch.device(device)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """A CPU generator a sample."""
        return [generator_of(self._seed, purpose, position) for position in self._positions]

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal float32 [batch, *shape]."""
        return self._stack([torch.randn(shape, generator=one) for one in self.generators(purpose)])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in 0 .. 1, float32 [batch, *shape]."""
        return self._stack([torch.rand(shape, generator=one) for one in self.generators(purpose)])

    def gumbel(self, purpose: str, *shape: int) -> Tensor:
        """Standard Gumbel noise, float32 [batch, *shape]."""
        rows = [torch.empty(shape).exponential_(generator=one) for one in self.generators(purpose)]
        return -self._stack(rows).log()

    def integers(self, purpose: str, below: int) -> Tensor:
        """int64 [batch] in 0 .. below - 1."""
        return self._stack([torch.randint(below, (), generator=one) for one in self.generators(purpose)])

    def _stack(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).to(self._device)


def generator_of(seed: int, purpose: str, position: int) -> torch.Generator:
    """The generator of a purpose at a position of the data order."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Objective(nn.Module):
    """Networks and their loss.

    Attributes:
        weights: Weight of each term in the loss. Further sums that `forward` returns are reported only; they need a
            count of the same name too.
    """

    weights: Mapping[str, float]

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """float32 scalars: the sum of each term over the batch's valid positions."""
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """The trained networks under their names in `models.parts.PARTS`."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """The blocks that are sharded, recomputed or compiled each for itself; in the order of the forward pass."""
        return []

    def fixed(self) -> list[nn.Module]:
        """Networks that never change and are made anew from the model: checkpoints leave them out."""
        return []

    def lr_scale(self, name: str) -> float:
        """Factor of the learning rate of the parameter of that name."""
        return 1.0

    def export(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The state of each of `parts` out of that of the whole objective, on the CPU and unsharded."""
        names = {module: name for name, module in self.named_modules(remove_duplicate=False)}
        return {
            part: {
                key.removeprefix(f"{names[module]}."): value
                for key, value in state.items()
                if key.startswith(f"{names[module]}.")
            }
            for part, module in self.parts().items()
        }

    def begin_step(self, step: int) -> None:
        """Called before the micro batches of optimizer step `step`, counted from 0: for what changes over a run."""

    def after_step(self, reduce: Reduce) -> None:
        """Called after the optimizer's step, on every rank: for what is learned without a gradient.

        All state that a resumed run needs belongs into buffers.
        """

    def drop_step(self) -> None:
        """Called instead of `after_step` when a step is left out: forgets what its micro batches showed."""

    def statistics(self) -> dict[str, float]:
        """What there is to tell since the last call, as the use of a codebook."""
        return {}


def frozen(module: M) -> M:
    """The module in evaluation mode and without gradients."""
    return module.eval().requires_grad_(False)


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Inputs on a device; copies from pinned memory overlap with what the device does."""
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
