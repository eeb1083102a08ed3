"""Record of what a run was started with, by which any of its steps can be computed again."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from videolavit.records.addresses import shown
from videolavit.records.storage import Folder

from .checkpoint import CheckpointError
from .component import ComponentSettings
from .components import UnknownComponent, settings_type
from .parallel import Ranks
from .settings import TrainInputs, TrainSettings

STARTS = "starts.jsonl"
"""File of a run with a line for each of its starts."""


@dataclass(frozen=True)
class TrainTask:
    """Everything that a rank must know; plain values, which can be sent to other processes.

    Args:
        component: Name of the component in `components.COMPONENTS`.
        model: Model folder or preset that training starts from.
        inputs: Training and held-out data.
        objective: Settings of the component.
        settings: Settings of the training loop.
        output: Folder of the run.
    """

    component: str
    model: str
    inputs: TrainInputs
    objective: ComponentSettings
    settings: TrainSettings
    output: str


@dataclass(frozen=True)
class RunStart:
    """A start of a run.

    Args:
        step: Step from which it began or went on.
        world: Number of ranks.
        threads: Threads of each rank; sums in another order round differently.
        task: Settings of the start.
    """

    step: int
    world: int
    threads: int
    task: TrainTask


def record_start(folder: Path, task: TrainTask, step: int, ranks: Ranks) -> None:
    """Adds a start to those of a run."""
    values = {
        "component": task.component,
        "model": task.model,
        "inputs": TypeAdapter(TrainInputs).dump_python(task.inputs, mode="json"),
        "objective": TypeAdapter(type(task.objective)).dump_python(task.objective, mode="json"),
        "settings": TypeAdapter(TrainSettings).dump_python(task.settings, mode="json"),
    }
    line = {"step": step, "world": ranks.world, "threads": torch.get_num_threads(), "task": values}
    with (folder / STARTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def starts_of(folder: Folder) -> list[dict[str, Any]]:
    """Starts of a run as they are stored, the oldest first."""
    found = []
    for line in (folder.read(STARTS) or b"").splitlines():
        with contextlib.suppress(ValueError):  # the line of a start that was killed
            found.append(json.loads(line))
    return found


def start_in(starts: Sequence[dict[str, Any]], step: int) -> dict[str, Any] | None:
    """The start that computed a step last; None if none is known."""
    return next((one for one in reversed(starts) if one["step"] < step), None)


def start_of(folder: Folder, step: int) -> RunStart:
    """Finds the start that computed a step last.

    Raises:
        CheckpointError: the folder holds no run that recorded its starts, or one of another version.
    """
    found = start_in(starts_of(folder), step)
    if found is None:
        raise CheckpointError(f"{shown(folder.url)} is no folder of a training: no start is recorded in {STARTS}")
    task = found["task"]
    try:
        return RunStart(
            found["step"],
            found["world"],
            found["threads"],
            TrainTask(
                task["component"],
                task["model"],
                TypeAdapter(TrainInputs).validate_python(task["inputs"]),
                TypeAdapter(settings_type(task["component"])).validate_python(task["objective"]),
                TypeAdapter(TrainSettings).validate_python(task["settings"]),
                folder.url,
            ),
        )
    except (KeyError, ValidationError, UnknownComponent) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{shown(folder.url)} was trained by another version, whose settings differ: {reason}"
        ) from None
