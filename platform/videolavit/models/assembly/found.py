"""Parts that were found on disk, and reports on their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..folder import ModelFolder
from ..model_file import MODEL_FILE
from ..part_files import save_part
from ..parts import NETWORKS
from ..presets import PRESETS
from ..shipped import SHIPPED


@dataclass(frozen=True)
class PartReport:
    """Origin of the tensors of a part.

    Args:
        taken: Names of tensors that were taken as they are.
        widened: Names of tensors that were taken and got new rows or channels.
        new: Names of tensors without a counterpart, which are untrained.
        left_over: Names of tensors of the source that the part has no use for.
    """

    taken: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundPart:
    """Part to be written.

    Args:
        write: Writes it into a folder.
        report: Origin of its tensors.
        config: Config of one of this project's networks, or content of the config of another one.
        is_trained: False if its source is untrained.
    """

    write: Callable[[Path], None]
    report: PartReport
    config: Any = None
    is_trained: bool = True


def is_model(location: str) -> bool:
    """Tells whether a location is a model folder, the shipped model or a preset."""
    return (Path(location) / MODEL_FILE).is_file() or (not Path(location).is_dir() and location in (*PRESETS, *SHIPPED))


def part_of_model(location: str, part: str) -> FoundPart:
    """Takes a part of a model. Raises ModelError if it has none, or it cannot be read."""
    model = ModelFolder(location)
    loaded = model.load(part, dtype=None)
    names = tuple(loaded.state_dict()) if hasattr(loaded, "state_dict") else ()
    config = loaded.config if part in NETWORKS else dict(loaded.config)
    return FoundPart(partial(save_part, loaded), PartReport(names), config, part in model.trained_parts)
