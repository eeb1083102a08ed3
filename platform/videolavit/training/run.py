"""A component's training in one process of a run, from settings to a model folder."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from videolavit.models.folder import ModelFolder

from .component import Component
from .curves import draw_curves
from .data import Stream
from .inputs import Inputs
from .parallel import Ranks
from .rank_share import RemoteLoader
from .saving import save_model
from .settings import TrainSettings
from .telemetry import Tracker
from .trainer import OnSave, Trainer

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class TrainTask:
    """All that a process must know; plain values, so that it can be sent.

    Args:
        component: A key of `components.COMPONENTS`.
        model: Folder or preset that training starts from.
        inputs: What it is trained on.
        objective: Of the component's own type.
        train: How.
        output: Folder of the run.
    """

    component: str
    model: str
    inputs: Inputs
    objective: Any
    train: TrainSettings
    output: str


def component_module(name: str) -> Any:
    """The module of a component: its `Settings` and `build`."""
    return importlib.import_module(f"videolavit.training.components.{name.replace('-', '_')}")


def train(
    task: TrainTask,
    ranks: Ranks,
    *,
    trackers: Sequence[Tracker] = (),
    line: Callable[[str], None] = print,
    on_save: OnSave | None = None,
    feed: Callable[[Stream], RemoteLoader] | None = None,
) -> Path:
    """Trains a component, and writes the model that it is a part of.

    Args:
        trackers, line, on_save: As the trainer has them.
        feed: Makes what loads the samples of a stream; by default threads of this process do.

    Returns:
        The model's folder, on every rank.

    Raises:
        DataError, ModelError, CheckpointError: a mistake of the user; the message names the fix.
        Diverged: the loss did not stay finite.
    """
    base = ModelFolder(task.model)
    component = _built(task, base)
    trainer = Trainer(
        component,
        task.train,
        ranks,
        Path(task.output),
        trackers=trackers,
        line=line,
        on_save=on_save,
        feed=feed(component.stream) if feed is not None else None,
    )
    trainer.run()
    target = Path(task.output) / MODEL_FOLDER
    with trainer.averaged():
        state: dict[str, Any] = get_model_state_dict(
            component.objective, options=StateDictOptions(full_state_dict=True, cpu_offload=ranks.world > 1)
        )
        if ranks.is_first:
            draw_curves(Path(task.output))
            save_model(base, target, component.objective.export(state), component.objective.parts())
    ranks.wait()
    return target


def _built(task: TrainTask, base: ModelFolder) -> Component:
    """The component, with all that decides its results among its facts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.train.seed)  # what an objective adds to the model is drawn here
        component: Component = component_module(task.component).build(base, task.inputs, task.objective)
    chosen = TypeAdapter(type(task.objective)).dump_python(task.objective, mode="json")
    order = {"weights": task.inputs.weights, "window": task.inputs.window}
    facts = {"component": task.component, "objective": chosen, "order": order, **component.facts}
    return replace(component, facts=facts)
