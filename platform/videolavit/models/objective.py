"""Training objectives: networks and their loss on one device. Parallelism is the trainer's business.

The loss of a step is the weighted sum of its terms. A term is a sum over the step's valid positions divided by their
number over all ranks and micro batches. Objectives therefore return sums, and batches know their numbers of valid
positions beforehand.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; the identity in a single process."""

SAMPLE_LOSSES = "samples"
"""Name under which `Objective.forward` may also return the loss of each sample, for reports: its sum over the sample's
valid positions and their number, [samples, 2] without a gradient. In packed rows each document is a sample."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Micro batch on the CPU.

    Args:
        inputs: Tensors for `Objective.forward`; the trainer moves them to the device.
        counts: Number of valid positions of every term that the objective returns. They are known before the forward
            pass, so that a step can divide by their global sum.
        positions: Position of each sample in the data order, which seeds its random numbers.
        tokens: Useful tokens, or samples, of each source, for telemetry.
        size: Computed positions, padding included; 0 for data without padding.
        flops: Floating-point operations of a forward and backward pass over the useful positions; 0 if not counted.
        weight: Weight of the batch; 0 for one that only keeps a rank in step while none of its samples can be used.
        sources: Source of each sample for which the objective returns a loss; empty for those of the batch's items.
    """

    inputs: dict[str, Tensor]
    counts: dict[str, float]
    positions: list[int]
    tokens: dict[str, int] = field(default_factory=dict)
    size: int = 0
    flops: float = 0.0
    weight: float = 1.0
    sources: list[str] = field(default_factory=list)


class Draws:
    """Random numbers of a batch. A sample's depend only on seed, purpose and its position in the data order.

    They are therefore the same on any rank, in any batch, and after a restart.
    """

    def __init__(self, seed: int, positions: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seed, self._positions, self._device = seed, list(positions), torch.device(device)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Returns a CPU generator per sample."""
        return [generator_of(self._seed, purpose, position) for position in self._positions]

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Draws standard normal numbers, float32 [batch, *shape]."""
        return self._stack([torch.randn(shape, generator=one) for one in self.generators(purpose)])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Draws uniform numbers from 0 to 1, float32 [batch, *shape]."""
        return self._stack([torch.rand(shape, generator=one) for one in self.generators(purpose)])

    def gumbel(self, purpose: str, *shape: int) -> Tensor:
        """Draws standard Gumbel noise, float32 [batch, *shape]."""
        rows = [torch.empty(shape).exponential_(generator=one) for one in self.generators(purpose)]
        return -self._stack(rows).log()

    def integers(self, purpose: str, below: int) -> Tensor:
        """Draws integers from 0 to below - 1, int64 [batch]."""
        return self._stack([torch.randint(below, (), generator=one) for one in self.generators(purpose)])

    def _stack(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows).to(self._device)


def generator_of(seed: int, purpose: str, position: int) -> torch.Generator:
    """Returns the generator of a purpose at a position of the data order."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Objective(nn.Module):
    """Networks and their loss.

    Attributes:
        weights: Weight of each term in the loss. Other sums that `forward` returns are only reported; they need a count
            of the same name too.
        keeps_beside: True if the objective has files that are kept beside the trained model.
    """

    weights: Mapping[str, float]
    keeps_beside: bool = False

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Returns the sum of each term over the valid positions of the batch, as float32 scalars.

        The losses of its samples may be there too, under `SAMPLE_LOSSES`.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, nn.Module]:
        """Returns the trained networks under their names in `models.parts.PARTS`."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Returns the blocks to shard, recompute or compile one by one, in the order of the forward pass."""
        return []

    def fixed(self) -> list[nn.Module]:
        """Returns the networks that never change. Checkpoints leave them out; the model provides them again."""
        return []

    def lr_scale(self, name: str) -> float:
        """Returns the factor of a parameter's learning rate, by the parameter's name."""
        return 1.0

    def kept_rows(self) -> Mapping[str, int]:
        """Returns the number of first rows that never change, of parameters of which only the others are trained."""
        return {}

    def export(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Extracts the state of each part from the state of the objective, which is on the CPU and unsharded."""
        names = {module: name for name, module in self.named_modules(remove_duplicate=False)}
        return {
            part: {
                key.removeprefix(f"{names[module]}."): value
                for key, value in state.items()
                if key.startswith(f"{names[module]}.")
            }
            for part, module in self.parts().items()
        }

    def save_beside(self, state: dict[str, Tensor], folder: Path) -> None:
        """Writes the files that are kept beside the model into an empty folder.

        Args:
            state: State of the objective, as for `export`.
            folder: Folder for the files.

        Raises:
            OSError: a file cannot be written.
        """
        raise NotImplementedError

    def begin_step(self, step: int) -> None:
        """Called before the micro batches of an optimizer step, counted from 0; for schedules."""

    def after_step(self, reduce: Reduce) -> None:
        """Called after the optimizer's step, on every rank; for state that is learned without a gradient.

        State that a resumed run needs must be in buffers.
        """

    def drop_step(self) -> None:
        """Called instead of `after_step` when a step is skipped; discards what its micro batches collected."""

    def statistics(self) -> dict[str, float]:
        """Returns figures since the last call, such as the use of a codebook."""
        return {}


def sample_losses(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Computes the value of `SAMPLE_LOSSES` from the mean of each term over the positions of each sample, [samples]."""
    losses = torch.stack([weight * terms[term].detach().float() for term, weight in weights.items()]).sum(0)
    return torch.stack([losses, torch.ones_like(losses)], 1)


def frozen(module: M) -> M:
    """Puts a module into evaluation mode without gradients, and returns it."""
    return module.eval().requires_grad_(False)


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Tensor]:
    """Moves inputs to a device; copies from pinned memory overlap with computation."""
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
