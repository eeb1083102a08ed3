"""Visual and motion tokenizers to start from: in the published layout, of a model, or the folder of a part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint.importing import IMPORT_FILE_BYTES, ImportPlan, plan_import
from ..checkpoint.layout import files_of
from ..checkpoint.new_folder import write_json, write_weights
from ..checkpoint.tensors import WeightsError
from ..config import ModelConfig
from ..network import CONFIG, ModelError, parse_config
from ..parts import NETWORKS, SEED
from ..presets import load_preset
from ..visual_tokenizer import VisualTokenizer
from .found import FoundPart, PartReport, is_model, part_of_model

PUBLISHED_SHAPES = "video-lavit-7b"
"""Preset with the sizes of published tokenizers, whose files do not hold them."""


def find_tokenizer(location: str, part: str, config: ModelConfig) -> FoundPart:
    """Finds a tokenizer.

    Args:
        location: Folder of the part, a model, or a folder in the published layout.
        part: `visual_tokenizer` or `motion_tokenizer`.
        config: Sizes that are tried for the published layout, before the published ones.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if is_model(location):
        return part_of_model(location, part)
    folder = Path(location)
    if (folder / CONFIG).is_file():
        kind = NETWORKS[part]
        network = kind.load(folder)
        return FoundPart(network.save, PartReport(tuple(network.state_dict())), network.config)
    published = _published_root(folder, part)
    if published is None:
        raise ModelError(
            f"no {part} in {location}: name a model, the folder of its {part}, or a folder in the published layout"
        )
    try:
        plan = plan_import(published, config, [part], whole=False)
    except WeightsError as error:
        try:
            plan = plan_import(published, load_preset(PUBLISHED_SHAPES), [part], whole=False)
        except WeightsError:
            raise error from None
    return _of_plan(plan, part)


def _published_root(folder: Path, part: str) -> Path | None:
    """Finds the root of a published layout that holds a part, for the root or the folder of its files."""
    for file in files_of([part]):
        for root in (folder, folder.parent):
            if any((root / file.folder / name).is_file() for name in file.names):
                return root
    return None


def _of_plan(plan: ImportPlan, part: str) -> FoundPart:
    expected, tensors = plan.parts[0], plan.tensors[part]

    def write(folder: Path) -> None:
        write_json(folder / CONFIG, expected.config)
        write_weights(folder, expected.weights, tensors, IMPORT_FILE_BYTES, lambda file, size: None)

    config = parse_config(NETWORKS[part].Config, expected.config, part)
    return FoundPart(write, PartReport(tuple(tensors)), config)


def with_projection(folder: Path, features_dim: int) -> FoundPart:
    """Makes the visual tokenizer of understanding from that of generation.

    Args:
        folder: Folder of the tokenizer of generation.
        features_dim: Channels of the language model, for which a projection is added if there is none.
    """
    source = VisualTokenizer.load(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = VisualTokenizer(replace(source.config, features_dim=features_dim))
    dtype = next(source.parameters()).dtype
    projection = {name: value.to(dtype) for name, value in network.state_dict().items()}
    wanted = {name: value.shape for name, value in projection.items()}
    taken = {name: value for name, value in source.state_dict().items() if wanted.get(name) == value.shape}
    network.load_state_dict(projection | taken, assign=True)
    new = tuple(name for name in wanted if name not in taken)
    return FoundPart(network.save, PartReport(taken=tuple(taken), new=new), network.config)
