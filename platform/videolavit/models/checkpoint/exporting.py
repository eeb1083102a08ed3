"""Export of a model folder to the published layout, for code that reads that layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as settings_dataclass

from videolavit.progress import OnProgress, Progress, ignore_progress

from ..folder import ModelFolder
from ..network import CONFIG, STRICT, parse_config, read_json, weight_files
from ..video_detokenizer import MotionUNet, MotionUNetConfig
from .expected import weights_name
from .layout import CONFIG_FOLDERS, LANGUAGE_FILES, PublishedFile, config_name, published_place, selected_parts
from .new_folder import OnWrite, copy_file, new_folder, progress_of_files, write_json, write_weights
from .plain import export_language_model
from .summary import CheckpointSummary, summarize_part
from .tensors import StoredTensor, WeightsError, list_tensors, raise_if_any

EXPORT_STAGE = "export"
EXPORT_FILE_BYTES = 5_000_000_000
"""Largest shard, in bytes; gives the published language models their three and four shards."""


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportSettings:
    """Choice of what is exported, and for whom.

    Args:
        layout: Layout of the new folder: `published`, or `transformers` for one language model as
            `AutoModelForCausalLM` and `AutoTokenizer` load it.
        only: Parts, or folders of parts such as `understanding`; None for the whole model, or its language model.
    """

    layout: Literal["published", "transformers"] = "published"
    only: tuple[str, ...] | None = None


def export_checkpoint(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> CheckpointSummary:
    """Writes a model folder in the published layout, or its language model in that of `transformers`.

    Tensors are copied bit for bit.

    `video_3d_unet.bin` is not written: its tensors are those of `video_detokenizer/unet` in another arrangement.

    Args:
        model: Model folder.
        target: New folder. It appears when it is complete.
        settings: Choice of what is exported.
        on_progress: Receives the bytes written so far, after each file.

    Raises:
        ModelError: there is no model, or a part is missing or cannot be read; or the target has content.
        OSError: a file cannot be written.
    """
    settings = settings or ExportSettings()
    on_progress(Progress(EXPORT_STAGE, message="reading names and shapes"))
    if settings.layout == "transformers":
        arguments = (settings.only, EXPORT_FILE_BYTES, EXPORT_STAGE, on_progress)
        return export_language_model(Path(model), Path(target), *arguments)
    plan = plan_export(Path(model), selected_parts(settings.only))
    remarks: list[str] = []
    with new_folder(Path(target), plan.nbytes, remarks) as folder:
        plan.write(folder, progress_of_files(EXPORT_STAGE, plan.nbytes, on_progress))
    parts = tuple(summarize_part(part, tensors) for part, tensors in plan.tensors.items())
    return CheckpointSummary(Path(target), parts, tuple(remarks))


@dataclass(frozen=True)
class ExportPlan:
    """Files that an export will write.

    Args:
        tensors: Tensors of each part by their names in the model.
        weights: Tensors of each published file by their names in it.
        copies: (source, path in the published folder) of files that are copied.
        configs: JSON files by their paths in the published folder.
    """

    tensors: dict[str, dict[str, StoredTensor]]
    weights: dict[PublishedFile, dict[str, StoredTensor]]
    copies: list[tuple[Path, str]]
    configs: dict[str, dict[str, Any]]

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        weights = sum(stored.nbytes for tensors in self.weights.values() for stored in tensors.values())
        return weights + sum(file.stat().st_size for file, _ in self.copies)

    def write(self, folder: Path, on_write: OnWrite, shard_bytes: int = EXPORT_FILE_BYTES) -> None:
        """Writes the files into an empty folder.

        Args:
            folder: Folder to write to.
            on_write: Called after each file of weights.
            shard_bytes: Largest size of a language model's shard of several tensors, in bytes.
        """
        for file, tensors in self.weights.items():
            limit = shard_bytes if file.is_sharded else None
            write_weights(folder / file.folder, file.stem + file.suffix, tensors, limit, on_write)
        for place, values in self.configs.items():
            write_json(folder / place, values)
        for source, place in self.copies:
            copy_file(source, folder / place)


def plan_export(folder: Path, parts: Sequence[str]) -> ExportPlan:
    """Finds the content of an export. It reads names and shapes, and writes nothing.

    Args:
        folder: Model folder.
        parts: Names of the parts to export.

    Raises:
        WeightsError: a part is missing or cannot be read.
        ModelError: there is no model in the folder.
    """
    if not folder.is_dir():  # a preset's name is no model to export
        raise WeightsError(f"there is no folder {folder}")
    ModelFolder(folder)
    missing = [part for part in parts if not _is_complete(folder / part, part)]
    raise_if_any(f"{folder} has not all parts", missing, "Export only the parts that are there")
    plan = ExportPlan({}, {}, [], {})
    for part in parts:
        tensors = plan.tensors.setdefault(part, {})
        for file in weight_files(folder / part, weights_name(part)):
            for stored in list_tensors(file):
                published, name = published_place(part, stored.name)
                plan.weights.setdefault(published, {})[name] = tensors[stored.name] = stored
        _add_files(plan, part, folder / part)
    return plan


def _is_complete(folder: Path, part: str) -> bool:
    has_weights = part.endswith("scheduler") or bool(weight_files(folder, weights_name(part)))
    return has_weights and (folder / config_name(part)).is_file()


def _add_files(plan: ExportPlan, part: str, folder: Path) -> None:
    """Adds a part's config, and the files beside a language model."""
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
    """Translates this project's config into that of `diffusers`."""
    with torch.device("meta"):
        network = MotionUNet(parse_config(MotionUNetConfig, read_json(file, WeightsError), file)).unet
    return {key: value for key, value in dict(network.config).items() if key != "_use_default_values"} | {
        "_class_name": type(network).__name__
    }
