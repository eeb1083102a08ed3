"""Training of a component on one rank, from the model it starts from to the model folder it ends in."""

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from videolavit.files import write_beside
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import finish_model_folder, new_model_folder
from videolavit.models.network import Network
from videolavit.models.part_files import save_part, save_tokenizer
from videolavit.models.parts import PARTS
from videolavit.models.quiet import quiet_libraries
from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.storage import StorageError

from .component import Component
from .data import DataError, Stream
from .loader import RemoteLoader
from .metrics import Tracker, draw_curves
from .parallel import Ranks
from .remote import RemoteRun, brought_here
from .task import TrainTask, record_start
from .trainer import ShouldStop, Trainer, never_stop

MODEL_FOLDER, ADAPTER_FOLDER = "model", "adapter"


def train_rank(
    task: TrainTask,
    ranks: Ranks,
    *,
    trackers: Sequence[Tracker] = (),
    on_progress: OnProgress = ignore_progress,
    remote_loader: Callable[[Stream], RemoteLoader] | None = None,
    should_stop: ShouldStop = never_stop,
    remote: RemoteRun | None = None,
) -> Path:
    """Trains a component on this rank. The first rank writes the model with the trained parts at the end.

    Args:
        trackers: Trackers in addition to those that the settings name.
        on_progress: Receives each line of metrics, on the first rank.
        remote_loader: Makes the loader of a stream's samples; by default threads of this process load them.
        should_stop: Asked after every step; once it is true on any rank, all save and stop.
        remote: Remote output of the task, with a folder of this rank alone.

    Returns:
        Folder of the model, on every rank.

    Raises:
        DataError, ModelError, CheckpointError, StorageError: a mistake of the user; the message names the fix.
        Diverged: the gradient was not finite for too many steps.
        Stopped: `should_stop` became true; a checkpoint holds the last step.
        TooManyRejects: too many samples could not be used; a checkpoint holds the last step.
    """
    folder = Path(task.output) if remote is None else remote.local
    with brought_here(task) as here:
        base = ModelFolder(here.model)
        component = build_component(here)
        trainer = Trainer(
            component,
            here.settings,
            ranks,
            folder,
            trackers=trackers,
            on_progress=on_progress,
            remote_loader=remote_loader(component.stream) if remote_loader is not None else None,
            should_stop=should_stop,
            remote=remote,
        )
        if ranks.is_first:
            record_start(folder, task, trainer.step, ranks)
        trainer.run()
        target = folder / MODEL_FOLDER
        with trainer.averaged_weights():
            options = StateDictOptions(full_state_dict=True, cpu_offload=ranks.world > 1)
            state: dict[str, Any] = get_model_state_dict(component.objective, options=options)
            if ranks.is_first:
                draw_curves(folder)
                try:
                    if component.objective.keeps_beside:
                        with write_beside(folder / ADAPTER_FOLDER) as (unfinished,):
                            unfinished.mkdir()
                            component.objective.save_beside(state, unfinished)
                    save_model(base, target, component.objective.export(state), component.objective.parts())
                except OSError as error:  # a full disk, most likely: starting again does not cure it
                    raise StorageError(f"cannot write to {target}: {error}") from None
                if remote is not None:
                    remote.send_model(target)
    ranks.wait()
    return target


def build_component(task: TrainTask) -> Component:
    """Component of a task, with the values that decide whether a checkpoint is of the same run.

    Raises:
        DataError, ModelError, InputError, StorageError: the model or the data cannot be used.
    """
    base = ModelFolder(task.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.settings.seed)  # for weights that the objective adds to the model
        component = task.objective.build(base, task.inputs)
    if task.inputs.validation and not component.validation:
        raise DataError(f"the validation data {', '.join(task.inputs.validation)} have no samples")
    settings = TypeAdapter(type(task.objective))
    identity = {
        "component": task.component,
        "objective": settings.dump_python(task.objective, mode="json"),
        "order": {"weights": task.inputs.weights, "window": task.inputs.window},
        **component.identity,
    }
    defaults = {"objective": settings.dump_python(type(task.objective)(), mode="json")}
    return replace(component, identity=identity, defaults=defaults)


def save_model(
    base: ModelFolder, target: Path, states: dict[str, dict[str, Tensor]], trained: dict[str, nn.Module]
) -> None:
    """Writes the base model with some parts replaced, in one step. A model that was there is replaced.

    Args:
        states: Tensors of each trained part, on the CPU.
        trained: Modules of the same parts, for configs that training changed.

    Raises:
        ModelError: the tensors do not fit the part.
    """
    try:
        with write_beside(target) as (unfinished,):
            new_model_folder(unfinished)
            linked: dict[str, str] = {}
            for part in filter(base.has, PARTS):
                if part not in states and (base.path / part).is_dir():
                    shutil.copytree(base.path / part, unfinished / part, copy_function=_link)
                    linked |= base.file_digests(part)
                else:
                    with quiet_libraries():
                        module = base.load(part, dtype=None)  # in the precision that it is stored in
                        if part in states:
                            # networks of diffusers keep their config apart from the module
                            if not isinstance(module, Network) and hasattr(module, "register_to_config"):
                                config: Any = trained[part].config
                                module.register_to_config(**{key: one for key, one in config.items() if key[0] != "_"})
                            module.load_state_dict(states[part], strict=True)
                        save_part(module, unfinished / part)
                    if part.endswith("language_model"):
                        save_tokenizer(base.text_tokenizer(part), unfinished / part)
            trained_parts = sorted({*base.trained_parts, *states})
            finish_model_folder(unfinished, replace(base.facts, trained=trained_parts), linked)
    finally:
        for left in target.parent.glob(f".{target.name}.*"):  # files of killed runs
            shutil.rmtree(left, ignore_errors=True)


def merge_models(models: list[ModelFolder], target: Path) -> None:
    """Joins models that were trained side by side: each part from the last model in which it is trained.

    Args:
        models: Models of one preset; parts that none has trained are those of the first.
        target: Folder of the new model, which must not exist. It appears in one step.
    """
    with write_beside(target) as (unfinished,):
        trained = sorted({part for model in models for part in model.trained_parts})
        new_model_folder(unfinished)
        linked: dict[str, str] = {}
        for part in filter(models[0].has, PARTS):
            owner = next((model for model in reversed(models) if part in model.trained_parts), models[0])
            shutil.copytree(owner.path / part, unfinished / part, copy_function=_link)
            linked |= owner.file_digests(part)
        finish_model_folder(unfinished, replace(models[0].facts, trained=trained), linked)


def _link(source: str, target: str) -> None:
    """Hard-links a file where the disk can, and copies it elsewhere. Files of models are never changed in place."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
