"""A part of a model on disk: safetensors and JSON in one folder, nothing pickled."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .layers import set_norm_groups, speed_up_temporal_convolutions
from .network import CONFIG, ModelError, Network, read_json
from .parts import DIFFUSERS, NETWORKS, SCHEDULERS

STRANGERS_CHOICES = (
    *("auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "use_kernels"),
    "transformers_weights",
)
"""Entries of a config by which `transformers` would load other code or files than the network's own."""

STRANGERS_FILES = ("adapter_config.json", "shard-*.safetensors")
"""Files beside the weights by which `transformers` would change the network, or read other weights."""

SCHEDULER_CONFIG = "scheduler_config.json"


def read_part(part: str, folder: Path) -> Any:
    """Loads a part in the precision that it was stored in.

    Args:
        part: Name of the part.
        folder: Folder of the part.

    Raises:
        ModelError: a file is missing, or cannot be used.
    """
    if part in NETWORKS:
        return NETWORKS[part].load(folder)
    if part in DIFFUSERS:
        return _read_diffusers(folder, DIFFUSERS[part])
    if part.endswith("scheduler"):
        return _read_scheduler(folder)
    return load_language_model(folder)[0]


def save_part(part: Any, folder: Path) -> None:
    """Writes a part in its own format: that of this project, of `diffusers` or of `transformers`. Raises OSError."""
    with naming_disk_faults():
        if isinstance(part, Network):
            part.save(folder)
        else:
            part.save_pretrained(folder)
            for file in folder.glob("*config.json"):
                _forget_place(file)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a text tokenizer in the format of `transformers`. Raises OSError."""
    with naming_disk_faults():
        tokenizer.save_pretrained(folder)


def _forget_place(file: Path) -> None:
    """Removes the folder that a part was loaded from, a path of this machine, from a config that `diffusers` wrote."""
    values = json.loads(file.read_text())
    if values.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def naming_disk_faults() -> Iterator[None]:
    """Turns what the writers of tensors raise where a file cannot be written, as on a full disk, into OSErrors."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from None
    except RuntimeError as error:  # torch's writer, which ends its archive although a write has failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    except Exception as error:
        if type(error) is Exception:  # the writer of tokenizers has no errors of its own
            raise OSError(str(error)) from None
        raise


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """Opens a part's files of weights: the sorted names of their tensors, and a function that reads one of them.

    Raises:
        ModelError: there are no weights, or a file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {path}: {error}") from None
            files |= dict.fromkeys(file.keys(), file)
        if not files:
            raise ModelError(f"no weights in {folder}")
        yield sorted(files), lambda name: files[name].get_tensor(name)


def _read_diffusers(folder: Path, class_name: str) -> Any:
    import diffusers

    if read_json(folder / CONFIG).get("quantization_config") is not None:
        raise ModelError(f"{folder} is quantized (quantization_config), by code that its config names; it is not read")
    with open_tensors(folder) as (names, tensor):
        stored = tensor(names[0]).dtype  # without it diffusers converts to float32
    with naming_folder(folder):
        network = getattr(diffusers, class_name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=stored
        )
    if "norm_num_groups" in network.config:  # the temporal VAE of diffusers ignores it
        set_norm_groups(network, network.config.norm_num_groups)
    speed_up_temporal_convolutions(network)
    return network


def outline_language_model(folder: Path) -> Any:
    """Makes a language model without its weights, on the meta device. Raises ModelError."""
    kind, config = language_model_class(folder)
    with naming_folder(folder), torch.device("meta"):
        return kind(config)


def language_model_class(folder: Path) -> tuple[Any, Any]:
    """Finds the class of a causal language model of any family of `transformers`, and reads its config.

    Raises:
        ModelError: the config cannot be read, is of no such family, or of quantised weights.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    config = read_json(folder / CONFIG)
    family = config.get("model_type")
    if family not in CONFIG_MAPPING or CONFIG_MAPPING[family] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{folder} holds a {family!r}, which is no causal language model of `transformers`")
    if config.get("quantization_config"):
        raise ModelError(f"the weights in {folder} are quantised (quantization_config); take those that are not")
    # code, attention and kernels that a config names are those of a stranger
    plain = {name: value for name, value in config.items() if name not in STRANGERS_CHOICES}
    kind = CONFIG_MAPPING[family]
    with naming_folder(folder):
        return MODEL_FOR_CAUSAL_LM_MAPPING[kind], kind.from_dict(plain)


def load_language_model(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Loads a causal language model; the second value has the names of tensors that its files lack or misfit.

    Raises:
        ModelError: see `language_model_class`; or files lie beside the weights that would change the network.
    """
    kind, config = language_model_class(folder)
    strange = sorted(file.name for pattern in STRANGERS_FILES for file in folder.glob(pattern))
    if strange:
        raise ModelError(f"{folder} has {strange[0]}, which is no file of a language model here; remove it")
    with naming_folder(folder):
        network, info = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype="auto",
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    return network, info


def _read_scheduler(folder: Path) -> Any:
    import diffusers

    config = read_json(folder / SCHEDULER_CONFIG)
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ModelError(f"{folder} has the scheduler {name!r}; known are {', '.join(SCHEDULERS)}")
    with naming_folder(folder):
        return getattr(diffusers, name).from_config(config)


@contextlib.contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Turns the libraries' errors about a folder into a ModelError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # configs of strangers make the libraries raise nearly every type
        raise ModelError(f"cannot load {folder}: {error or type(error).__name__}") from None
