"""Trained networks as a model folder, which every other command reads."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from videolavit.files import write_beside
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import create_model_folder
from videolavit.models.network import Network
from videolavit.models.part_files import save_part
from videolavit.models.parts import PARTS
from videolavit.models.quiet import quiet_libraries


def save_model(
    base: ModelFolder, target: Path, states: dict[str, dict[str, Tensor]], trained: dict[str, nn.Module]
) -> None:
    """Writes the base model with some parts replaced, in one step; a model that was there gives way.

    Args:
        states: Tensors of each part that was trained, on the CPU.
        trained: The same parts as modules, for what training changed in their configs.

    Raises:
        ModelError: the tensors do not fit the part.
    """
    try:
        with write_beside(target) as (unfinished,):
            _write_parts(base, unfinished, states, trained)
    finally:
        for left in target.parent.glob(f".{target.name}.*"):  # of killed runs
            shutil.rmtree(left, ignore_errors=True)


def _write_parts(
    base: ModelFolder, folder: Path, states: dict[str, dict[str, Tensor]], trained: dict[str, nn.Module]
) -> None:
    create_model_folder(folder, base.sizes, trained=sorted({*base.trained_parts, *states}))
    for part in filter(base.has, PARTS):
        if part in states:
            with quiet_libraries():
                save_part(_filled(base, part, states[part], trained[part]), folder / part)
        elif (base.path / part).is_dir():
            shutil.copytree(base.path / part, folder / part, copy_function=_link)
        else:
            with quiet_libraries():
                save_part(base.load(part, dtype=None), folder / part)
        if part.endswith("language_model"):
            base.text_tokenizer(part).save_pretrained(folder / part)


def _filled(base: ModelFolder, part: str, state: dict[str, Tensor], trained: nn.Module) -> Any:
    """The part as it was, with other weights, in the precision that it was stored in."""
    module = base.load(part, dtype=None)
    if not isinstance(module, Network) and hasattr(module, "register_to_config"):  # a network of diffusers
        changed: Any = trained.config
        module.register_to_config(**{name: value for name, value in changed.items() if name[0] != "_"})
    module.load_state_dict(state, strict=True)
    return module


def _link(source: str, target: str) -> None:
    """The same file under two names where the disk can do that; models are never changed in place."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def merge_models(models: list[ModelFolder], target: Path) -> None:
    """Joins what was trained side by side: each part from the last of the models in which it is trained.

    Args:
        models: Of one preset; the first gives what none has trained.
        target: Does not exist yet, and is whole when it does.
    """
    with write_beside(target) as (unfinished,):
        trained = sorted({part for one in models for part in one.trained_parts})
        create_model_folder(unfinished, models[0].sizes, trained=trained)
        for part in filter(models[0].has, PARTS):
            owner = next((one for one in reversed(models) if part in one.trained_parts), models[0])
            shutil.copytree(owner.path / part, unfinished / part, copy_function=_link)
