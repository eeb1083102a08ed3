"""`model.json`: the file that makes a folder a model, with facts that belong to no single part."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .config import OutputSizes
from .network import ModelError, parse_config, read_json

MODEL_FILE = "model.json"
FORMAT = "videolavit-1"


@dataclass(frozen=True)
class ModelFacts:
    """Content of `model.json`.

    Args:
        sizes: Default sizes of generated pictures and videos.
        trained: Names of the parts that were trained; or True for all that are there, False for none.
    """

    sizes: OutputSizes
    trained: bool | list[str]


def create_model_folder(target: Path, sizes: OutputSizes, trained: bool | list[str]) -> None:
    """Creates a model folder without parts.

    Args:
        target: Folder that does not exist yet, or is empty.
        sizes: See `ModelFacts`.
        trained: See `ModelFacts`.

    Raises:
        ModelError: the folder has content.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is not empty; name a new folder for the model")
    target.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "trained": trained, "sizes": asdict(sizes)}
    (target / MODEL_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def read_facts(folder: Path) -> ModelFacts:
    """Reads `model.json`. Raises ModelError if it cannot be read or has another format."""
    file = folder / MODEL_FILE
    content = read_json(file)
    if content.get("format") != FORMAT:
        raise ModelError(f"{file} has format {content.get('format')!r}, this version reads {FORMAT!r}")
    try:
        return ModelFacts(parse_config(OutputSizes, content["sizes"], file), content["trained"])
    except KeyError as name:
        raise ModelError(f"{file} lacks {name}") from None
