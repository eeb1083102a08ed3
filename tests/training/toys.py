"""A component of some dozens of weights: all that the loop does, in milliseconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videolavit.media import MediaError
from videolavit.models.objective import SAMPLE_LOSSES, Batch, Draws, Objective, Reduce, sample_losses
from videolavit.training.component import Component
from videolavit.training.data import Item, Mixture, SampleStream


class ToyObjective(Objective):
    """Denoises vectors of 4: weights, a frozen network, noise by sample, a second term, and state without gradient."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 4)) for _ in range(2)
        )
        self.head = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("seen", torch.zeros(4))
        self._fresh = torch.zeros(4)
        self.weights = {"error": 1.0, "size": 0.1}

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        values = inputs["values"]
        x = values + 0.1 * draws.normal("noise", 4).to(values)
        for block in self.blocks:
            x = x + block(x)
        x = self.head(x)
        if self.training:
            self._fresh = self._fresh.to(values.device) + values.detach().sum(0)
        means = {"error": (x - self.frozen(values)).square().mean(1), "size": x.square().sum(1)}
        return {"error": (x - self.frozen(values)).square().sum(), "size": x.square().sum()} | {
            SAMPLE_LOSSES: sample_losses(means, self.weights)
        }

    def parts(self) -> dict[str, nn.Module]:
        return {"head": self.head}

    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def after_step(self, reduce: Reduce) -> None:
        self.seen.mul_(0.9).add_(reduce(self._fresh))
        self._fresh = torch.zeros(4)

    def drop_step(self) -> None:
        self._fresh = torch.zeros(4)

    def statistics(self) -> dict[str, float]:
        return {"seen": float(self.seen.sum())}


class Unreadable(MediaError):
    """A sample that is broken on purpose."""


class InMemorySource:
    """Samples that are there already, as one shard."""

    def __init__(self, name: str, samples: Sequence[Any]) -> None:
        self.name, self.sizes, self._samples = name, [len(samples)], samples
        self.content = name

    def load(self, shard: int, row: int) -> Any:
        return self._samples[row]

    def identify(self, shard: int, row: int) -> str:
        return f"{self.name}-{row}"


class BrokenSource(InMemorySource):
    """Samples of which some cannot be read."""

    def __init__(self, name: str, samples: Sequence[Any], broken: set[int]) -> None:
        super().__init__(name, samples)
        self._broken = broken

    def load(self, shard: int, row: int) -> Any:
        if row in self._broken:
            raise Unreadable(f"sample {row} is broken")
        return super().load(shard, row)


def collate(items: Sequence[Item], samples: Sequence[Any]) -> Batch:
    tokens: dict[str, int] = {}
    for item in items:
        tokens[item.source] = tokens.get(item.source, 0) + 1
    return Batch(
        inputs={"values": torch.stack(list(samples))},
        counts={"error": 4.0 * len(items), "size": float(len(items))},
        positions=[item.position for item in items],
        tokens=tokens,
    )


def toy(samples: int = 37, broken: frozenset[int] = frozenset(), width: int = 8, **changes: Any) -> Component:
    """The component over two sources, always with the same first weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        objective = ToyObjective(width)
        values = torch.randn(samples, 4)
    sources = [BrokenSource("many", list(values), set(broken)), InMemorySource("few", list(values[:5] + 1))]
    mixture = Mixture(sources, [0.75, 0.25], seed=3)
    validation = [Item(-1 - row, "held-out", lambda row=row: values[row]) for row in range(6)]
    options = {"validation": validation, "identity": {"toy": 1}} | changes
    return Component(objective=objective, stream=SampleStream(mixture), collate=collate, **options)
