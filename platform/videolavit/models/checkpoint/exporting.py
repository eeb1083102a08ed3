"""A model folder back to the published layout, for code that reads that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..folder import ModelFolder
from ..network import CONFIG, parse_config, weight_files
from ..video_detokenizer import MotionUNet, MotionUNetConfig
from .expected import weights_name
from .layout import CONFIG_FOLDERS, LANGUAGE_FILES, PublishedFile, config_name, published_place
from .new_folder import OnWrite, copy_file, write_json, write_weights
from .tensors import Stored, WeightsError, list_tensors, read_json, refuse

EXPORT_FILE_BYTES = 5_000_000_000
"""Gives the published language models their three and four shards."""


@dataclass(frozen=True)
class ExportPlan:
    """What will be written.

    Args:
        weights: By file of the published layout, and by tensor name in it.
        copies: (source, path in the published folder).
        configs: JSON files, by their paths.
    """

    weights: dict[PublishedFile, dict[str, Stored]]
    copies: list[tuple[Path, str]]
    configs: dict[str, dict[str, Any]]

    @property
    def nbytes(self) -> int:
        """What is to be written."""
        weights = sum(stored.nbytes for tensors in self.weights.values() for stored in tensors.values())
        return weights + sum(file.stat().st_size for file, _ in self.copies)

    def write(self, folder: Path, on_write: OnWrite, shard_bytes: int = EXPORT_FILE_BYTES) -> None:
        """Writes into an empty folder.

        Args:
            shard_bytes: What a file of a language model may hold if that is more than one tensor.
        """
        for source, tensors in self.weights.items():
            limit = shard_bytes if source.is_sharded else None
            write_weights(folder / source.folder, source.stem + source.suffix, tensors, limit, on_write)
        for place, values in self.configs.items():
            write_json(folder / place, values)
        for file, place in self.copies:
            copy_file(file, folder / place)


def plan_export(folder: Path, parts: Sequence[str]) -> ExportPlan:
    """Finds what an export needs; reads names and shapes, and writes nothing.

    Args:
        folder: A model in this project's format.
        parts: To be exported.

    Raises:
        WeightsError: a part is missing or cannot be read. ModelError: there is no model in the folder.
    """
    if not folder.is_dir():  # the name of a preset is no model to export
        raise WeightsError(f"there is no folder {folder}")
    ModelFolder(folder)
    missing = [part for part in parts if not _is_complete(folder / part, part)]
    refuse(f"{folder} has not all parts", missing, "Name the parts that are there with --only")
    plan = ExportPlan({}, [], {})
    for part in parts:
        for file in weight_files(folder / part, weights_name(part)):
            for stored in list_tensors(file):
                source, name = published_place(part, stored.name)
                plan.weights.setdefault(source, {})[name] = stored
        _add_files(plan, part, folder / part)
    return plan


def _is_complete(folder: Path, part: str) -> bool:
    has_weights = part.endswith("scheduler") or bool(weight_files(folder, weights_name(part)))
    return has_weights and (folder / config_name(part)).is_file()


def _add_files(plan: ExportPlan, part: str, folder: Path) -> None:
    """The config, and what lies beside a language model."""
    if part not in CONFIG_FOLDERS:
        return
    published = CONFIG_FOLDERS[part]
    if part == "video_detokenizer/unet":
        plan.configs[f"{published}/{CONFIG}"] = _video_unet_config(folder / CONFIG)
    else:
        plan.copies.append((folder / config_name(part), f"{published}/{config_name(part)}"))
    if part.endswith("language_model"):
        present = [name for name in LANGUAGE_FILES if (folder / name).is_file()]
        plan.copies.extend((folder / name, f"{published}/{name}") for name in present)


def _video_unet_config(file: Path) -> dict[str, Any]:
    """Ours in the words of `diffusers`."""
    with torch.device("meta"):
        network = MotionUNet(parse_config(MotionUNetConfig, read_json(file), file)).unet
    return {key: value for key, value in dict(network.config).items() if key != "_use_default_values"} | {
        "_class_name": type(network).__name__
    }
