"""Networks with a frozen config, saved as safetensors and JSON."""

import json
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import ModelError

__all__ = ["STRICT", "ModelError", "Network", "load_exactly", "parse_config", "weight_files"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
STRICT = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)
"""Settings reject unknown keys, and numbers that are not finite."""

C = TypeVar("C")


class Network(nn.Module, Generic[C]):
    """A module built from a config.

    Subclasses set `Config` and take one in their constructor. `save` and `load` keep every tensor bit for bit, in its
    data type.
    """

    Config: ClassVar[type[Any]]
    config: C

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads a network from a folder, in evaluation mode.

        Raises:
            ModelError: the folder holds no network, another one, or weights of another shape.
        """
        if not (folder / CONFIG).is_file():
            raise ModelError(f"no network in {folder}: {CONFIG} is missing")
        config = parse_config(cls.Config, read_json(folder / CONFIG), folder / CONFIG)
        with torch.device("meta"):
            network = cls(config)
        files = weight_files(folder, WEIGHTS)
        if not files:
            raise ModelError(f"no network in {folder}: {WEIGHTS} is missing")
        state: dict[str, torch.Tensor] = {}
        for file in files:
            try:
                state |= load_file(file)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {file}: {error}") from None
        load_exactly(network, state, str(folder))
        return network.eval()

    def save(self, folder: Path) -> None:
        """Writes `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = TypeAdapter(self.Config).dump_python(self.config, mode="json")
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)


def weight_files(folder: Path, name: str) -> list[Path]:
    """Finds the file of that name in a folder, or the shards that `NAME.index.json` lists; empty without either.

    Raises:
        ModelError: the index cannot be read, lists a file outside the folder, or one that is missing.
    """
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise ModelError(f"{index} is no index of shards: it has no `weight_map` of names")
    names = sorted(set(shards.values()))
    for shard in names:
        if shard != Path(shard).name or shard in ("", ".."):
            raise ModelError(f"{index} lists {shard!r}; shards lie beside their index, in the same folder")
        if not (folder / shard).is_file():
            raise ModelError(f"{folder / shard} is missing; {index.name} lists it")
    return [folder / shard for shard in names]


def parse_config(kind: type[C], values: Any, source: object) -> C:
    """Makes a typed config from values as JSON or YAML hold them.

    Raises:
        ModelError: a key is unknown or missing, or a value has the wrong type; the message names it and the source.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ModelError(f"{source}: {problems}") from None


def load_exactly(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Gives a module its weights without copying them.

    Raises:
        ModelError: a key is missing, left over, or of another shape; the message lists them.
    """
    wanted = module.state_dict()
    problems = [f"missing {key}" for key in sorted(wanted.keys() - state.keys())]
    problems += [f"left over {key}" for key in sorted(state.keys() - wanted.keys())]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if wanted[key].shape != state[key].shape
    ]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError(f"the weights in {source} do not fit the network:{shown}{more}")
    module.load_state_dict(state, strict=True, assign=True)


def read_json(file: Path, error_type: type[ModelError] = ModelError) -> dict[str, Any]:
    """Reads an object from a JSON file. Raises an error of the given type if there is none."""
    try:
        return dict(json.loads(file.read_text()))
    except OSError as error:
        raise error_type(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise error_type(f"cannot read {file}: it is not JSON ({error})") from None
