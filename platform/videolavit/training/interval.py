"""What is measured between two lines of metrics."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .loader import StepData
from .parallel import Ranks


@dataclass
class Interval:
    """What is measured between two lines of metrics."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    norm: float = 0.0
    sums: list[dict[str, Tensor]] = field(default_factory=list)
    counts: list[dict[str, float]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    work: dict[str, float] = field(default_factory=lambda: {"samples": 0.0, "size": 0.0, "flops": 0.0})

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def add(self, data: StepData, norm: float) -> None:
        self.steps += 1
        self.norm = norm
        for batch in data.batches:
            self.counts.append(batch.counts)
            self.tokens.update(batch.tokens)
            work = {"samples": len(batch.positions) * batch.weight, "size": batch.size, "flops": batch.flops}
            for name, value in work.items():
                self.work[name] += value

    def metrics(self, weights: Mapping[str, float], ranks: Ranks, peak: float | None) -> dict[str, float]:
        """Means of the terms, and speed, over the interval and all ranks.

        Args:
            weights: Of the terms in the loss.
            peak: Floating-point operations a second of a device, for the model FLOPs utilisation.
        """
        seconds = self.seconds
        sums = ranks.sums(summed([{name: float(value) for name, value in one.items()} for one in self.sums]))
        work = ranks.sums(self.work)
        tokens = sum(merged(dict(self.tokens), ranks).values())
        metrics = mean_terms(sums, ranks.sums(summed(self.counts)), weights)
        metrics |= {"grad_norm": self.norm, "samples_per_second": work["samples"] / seconds}
        metrics |= {"step_seconds": seconds / self.steps}
        if work["size"]:  # sequences
            metrics |= {"tokens_per_second": tokens / seconds, "packing": tokens / work["size"]}
        if peak and work["flops"]:
            metrics["mfu"] = work["flops"] / seconds / (peak * ranks.world)
        return metrics


def mean_terms(sums: dict[str, float], counts: dict[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """The mean of every term, and the loss."""
    means = {term: total / max(counts[term], 1.0) for term, total in sums.items()}
    return {"loss": sum(weight * means[term] for term, weight in weights.items())} | means


def merged(values: dict[str, int], ranks: Ranks) -> dict[str, float]:
    """Sums over ranks that may name different values."""
    if ranks.world == 1:
        return {name: float(value) for name, value in values.items()}
    of_ranks: list[dict[str, int]] = [{}] * ranks.world
    torch.distributed.all_gather_object(of_ranks, values)
    total: Counter[str] = Counter()
    for one in of_ranks:
        total.update(one)
    return {name: float(value) for name, value in sorted(total.items())}


def summed(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sums of values of the same names."""
    return {name: math.fsum(part[name] for part in parts) for name in sorted(parts[0])} if parts else {}
