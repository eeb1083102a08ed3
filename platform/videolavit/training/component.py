"""What the trainer is given: an objective, its data, and what it can show and save."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videolavit.models.objective import Batch, Objective

from .data import Item, Stream

Collate = Callable[[Sequence[Item], Sequence[Any]], Batch]
"""Makes a micro batch of items and what they loaded. Runs in a thread; deterministic, on the CPU."""

Show = Callable[[Objective, Path], dict[str, float]]
"""Writes samples (pictures, videos) of the objective as it is into a folder; returns what was measured on them."""


@dataclass(frozen=True)
class Component:
    """Something to train.

    Args:
        objective: Networks and loss.
        stream: What it is trained on.
        collate: Items to a micro batch.
        validation: Fixed held-out items, whose loss is measured with fixed random numbers.
        show: Samples to look at; None without.
        tokens_an_item: Of a component with sequences: tokens of an item, padding included; 0 otherwise.
        facts: What a checkpoint must agree on to be continued, as JSON values: shapes, vocabulary, data identity.
    """

    objective: Objective
    stream: Stream
    collate: Collate
    validation: Sequence[Item] = ()
    show: Show | None = None
    tokens_an_item: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
