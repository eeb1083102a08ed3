"""Estimate of a run's core-hours: the costs of its plan, calibrated on the first shards that it has made."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from videolavit.records.cost import COST_SPREAD
from videolavit.records.shards import Ledger

CALIBRATION_SHARDS = 64
"""Committed shards that are compared with their plan; more would tell little more."""

LEAST_SHARDS = 4
"""Fewer shards say nothing about how much shards vary."""

LEAST_SPREAD = 1.1
"""Factor between a good estimate and what a run takes, which other work on a machine brings about."""


@dataclass(frozen=True)
class Calibration:
    """Relation of measured to planned costs.

    Args:
        factor: Measured core-seconds of a planned one.
        spread: Factor by which a run may take more or less.
        shards: Shards that were compared; 0 for the model alone.
    """

    factor: float = 1.0
    spread: float = COST_SPREAD
    shards: int = 0


def calibrate(ledger: Ledger) -> Calibration:
    """Compares the first committed shards of a run with their plan; reads their footers and plans."""
    work = {one.name: one.counts["work_seconds"] for one in islice(ledger.summaries(), CALIBRATION_SHARDS)}
    planned: dict[str, float] = {}
    for shard, cost in shard_costs(ledger):
        if len(planned) == len(work):
            break
        if shard in work:
            planned[shard] = cost
    return calibration_of([(cost, work[shard]) for shard, cost in planned.items() if cost and work[shard]])


def calibration_of(measured: Sequence[tuple[float, float]]) -> Calibration:
    """Calibration by the planned and the measured core-seconds of shards. Few of them leave the model's spread."""
    cost, work = sum(cost for cost, _ in measured), sum(work for _, work in measured)
    if not work:
        return Calibration()
    factor, count = work / cost, len(measured)
    if count < LEAST_SHARDS:
        return Calibration(factor, COST_SPREAD, count)
    variance = sum((part - factor * planned) ** 2 for planned, part in measured) * count / (count - 1)
    return Calibration(factor, min(LEAST_SPREAD + 2 * math.sqrt(variance) / work, COST_SPREAD), count)


def shard_costs(ledger: Ledger) -> Iterator[tuple[str, float]]:
    """Yields the planned core-seconds of every shard, the oldest plan first."""
    for plan in ledger.planned(["shard", "cost"]):
        sums = plan.group_by("shard").aggregate([("cost", "sum")])
        yield from zip(sums["shard"].to_pylist(), sums["cost_sum"].to_pylist(), strict=True)
