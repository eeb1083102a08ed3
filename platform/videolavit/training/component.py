"""Training components: what the trainer needs of one, and the protocol of its settings, which build it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from videolavit.models.folder import ModelFolder
from videolavit.models.objective import Batch, Objective

from .data import Item, Stream
from .settings import TrainInputs

Collate = Callable[[Sequence[Item], Sequence[Any]], Batch]
"""Makes a micro batch on the CPU from items and their loaded samples. It runs in a thread and must be deterministic."""

WriteSamples = Callable[[Objective, Path], dict[str, float]]
"""Writes samples (pictures, videos) of the objective's current weights into a folder, and returns metrics of them."""


Fill = Callable[[Any], None]
"""Reads the weights of sharded networks, each rank its share. It gets a process group for values of the host."""


@dataclass(frozen=True)
class Component:
    """A part of the model in training: its objective, its data, and how it is judged.

    Args:
        objective: Networks and loss.
        stream: Training data.
        collate: Makes micro batches.
        validation: Fixed held-out items. Their loss is computed with fixed random numbers.
        write_samples: Writes samples to look at; None for a component without.
        tokens_per_item: Tokens of an item, padding included, for components with sequences; 0 otherwise.
        identity: Values that must not change when a checkpoint is resumed, as JSON values: shapes, vocabulary, data.
        defaults: Defaults of these values, for checkpoints that were made before a setting was there.
        fill: Reads the weights of an objective that was made on the meta device; None for one that has its weights.
    """

    objective: Objective
    stream: Stream
    collate: Collate
    validation: Sequence[Item] = ()
    write_samples: WriteSamples | None = None
    tokens_per_item: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    fill: Fill | None = None


class ComponentSettings(Protocol):
    """Settings of a component: a pydantic dataclass."""

    def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
        """Loads the networks that are trained from the model, and opens the data.

        Raises:
            DataError, ModelError: the data or the model cannot be trained with these settings.
        """
        ...
