"""Diffusion models of pictures and videos to start from, in the layouts of `diffusers` (SDXL, Stable Video Diffusion).

Networks start as the ones that they come from. What conditions them here has no counterpart there: the layers that end
it are zeros, which is how both are told nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.expected import renamed_attention, scheduler_part
from ..checkpoint.layout import DIFFUSERS_STEM
from ..checkpoint.new_folder import write_json
from ..checkpoint.tensors import read_tensors
from ..keyframe_detokenizer import ConditionDecoder
from ..keyframe_detokenizer.config import TIME_IDS
from ..network import CONFIG, ModelError, load_exactly, read_json, weight_files
from ..part_files import SCHEDULER_CONFIG, save_part
from ..parts import DIFFUSERS
from ..published import empty_module
from ..quiet import quiet_libraries
from ..video_detokenizer import MotionConditionEncoder, MotionUNet
from ..video_detokenizer.unet import IN_CHANNELS, MOTION_CHANNELS, OUT_CHANNELS
from .found import FoundPart, PartReport, is_model, part_of_model

IMAGE_PARTS = ("conditions", "unet", "vae", "scheduler")
"""Parts of the keyframe detokenizer; all but the first are in a folder of `diffusers`."""

VIDEO_PARTS = ("motion_encoder", "unet", "vae", "scheduler")
"""Parts of the video detokenizer; all but the first are in a folder of `diffusers`."""

_WEIGHTS = tuple(f"{DIFFUSERS_STEM}{kind}.{suffix}" for suffix in ("safetensors", "bin") for kind in ("", ".fp16"))
_FIRST = "conv_in.weight"


def find_image_diffusion(location: str) -> dict[str, FoundPart]:
    """Finds the parts of a keyframe detokenizer, by their names.

    Args:
        location: Folder of `diffusers` with SDXL's layout (`unet/`, `vae/`, `scheduler/`), or a model.

    Raises:
        ModelError: a part is missing, or does not fit; the message names the tensors.
    """
    unit = "keyframe_detokenizer"
    if is_model(location):
        return {f"{unit}/{name}": part_of_model(location, f"{unit}/{name}") for name in IMAGE_PARTS}
    folder = Path(location)
    return {
        f"{unit}/unet": _stock_network(f"{unit}/unet", folder / "unet", _image_problems),
        f"{unit}/vae": _stock_network(f"{unit}/vae", folder / "vae", _vae_problems),
        f"{unit}/scheduler": _scheduler(f"{unit}/scheduler", folder / "scheduler"),
    }


def find_video_diffusion(location: str) -> dict[str, FoundPart]:
    """Finds the parts of a video detokenizer, by their names.

    Args:
        location: Folder of `diffusers` with the layout of Stable Video Diffusion, or a model.

    Raises:
        ModelError: a part is missing, or does not fit; the message names the tensors.
    """
    unit = "video_detokenizer"
    if is_model(location):
        return {f"{unit}/{name}": part_of_model(location, f"{unit}/{name}") for name in VIDEO_PARTS}
    folder = Path(location)
    return {
        f"{unit}/unet": _video_unet(folder / "unet"),
        f"{unit}/vae": _stock_network(f"{unit}/vae", folder / "vae", _vae_problems),
        f"{unit}/scheduler": _scheduler(f"{unit}/scheduler", folder / "scheduler"),
    }


def pooled_size(unet: Mapping[str, Any]) -> int:
    """Returns the channels of the pooled condition of SDXL's U-Net, by its config."""
    return int(unet["projection_class_embeddings_input_dim"] - TIME_IDS * unet["addition_time_embed_dim"])


@torch.no_grad()
def silence(module: nn.Module) -> None:
    """Sets the last layers of a network of conditions to zero: a U-Net reads them as no condition."""
    last: list[nn.Linear] = []
    if isinstance(module, ConditionDecoder):
        last = [module.unet_proj_1, module.unet_proj_2, module.unet_attnpool.c_proj]
    elif isinstance(module, MotionConditionEncoder):
        last = [module.out_proj]
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _image_problems(values: Mapping[str, Any]) -> list[str]:
    wanted = {
        "addition_embed_type": "text_time",
        "in_channels": OUT_CHANNELS,
        "out_channels": OUT_CHANNELS,
        "encoder_hid_dim_type": None,
        "class_embed_type": None,
    }
    found = {"in_channels": OUT_CHANNELS, "out_channels": OUT_CHANNELS} | dict(values)
    problems = [
        f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value
    ]
    if not isinstance(values.get("cross_attention_dim"), int):
        problems.append("cross_attention_dim is no number")
    return problems


def _vae_problems(values: Mapping[str, Any]) -> list[str]:
    channels = values.get("latent_channels", OUT_CHANNELS)
    return [] if channels == OUT_CHANNELS else [f"latent_channels is {channels}, not {OUT_CHANNELS}"]


def _stock_network(part: str, folder: Path, problems: Callable[[Mapping[str, Any]], list[str]]) -> FoundPart:
    """Takes a network of `diffusers` as it is."""
    import diffusers

    values = _config(folder, DIFFUSERS[part])
    if found := problems(values):
        raise ModelError(f"{folder} does not fit {part}: {'; '.join(found)}")
    with torch.device("meta"), quiet_libraries():
        network = getattr(diffusers, DIFFUSERS[part]).from_config(values)
    names = renamed_attention(network)
    state = {names.get(name, name): tensor for name, tensor in _tensors(folder).items()}
    report = _fill(network, state, folder)
    return FoundPart(partial(save_part, network), report, values)


def _video_unet(folder: Path) -> FoundPart:
    """Takes the U-Net of Stable Video Diffusion. Its first convolution gets channels of motion, which are zeros."""
    values = _config(folder, "UNetSpatioTemporalConditionModel")
    with quiet_libraries():
        network: MotionUNet = empty_module("video_unet", {k: one for k, one in values.items() if k != "in_channels"})
    state = {f"unet.{name}": tensor for name, tensor in _tensors(folder).items()}
    first = state.get(f"unet.{_FIRST}")
    widened: tuple[str, ...] = ()
    if first is not None and first.shape[1] == IN_CHANNELS - MOTION_CHANNELS:
        still = first.new_zeros(len(first), MOTION_CHANNELS, *first.shape[2:])
        state[f"unet.{_FIRST}"] = torch.cat([first, still], dim=1)
        widened = (f"unet.{_FIRST}",)
    report = _fill(network, state, folder)
    taken = tuple(name for name in report.taken if name not in widened)
    return FoundPart(network.save, replace(report, taken=taken, widened=widened), network.config)


def _config(folder: Path, wanted: str) -> dict[str, Any]:
    values = read_json(folder / CONFIG)
    kind = values.get("_class_name", wanted)
    if kind != wanted:
        raise ModelError(f"{folder} holds a {kind}, not a {wanted}")
    return values


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Opens the tensors of a folder; they are mapped from the disk."""
    for name in _WEIGHTS:
        if files := weight_files(folder, name):
            return {key: tensor for file in files for key, tensor in read_tensors(file).items()}
    raise ModelError(f"no weights in {folder}: there is no {', '.join(_WEIGHTS)}")


def _fill(network: nn.Module, state: dict[str, Tensor], folder: Path) -> PartReport:
    """Gives a network its tensors, and leaves out those that it does not know. Raises ModelError by their names."""
    known = network.state_dict().keys()
    taken = {name: tensor for name, tensor in state.items() if name in known}
    load_exactly(network, taken, str(folder))
    return PartReport(taken=tuple(taken), left_over=tuple(name for name in state if name not in known))


def _scheduler(part: str, folder: Path) -> FoundPart:
    expected = scheduler_part(part, read_json(folder / SCHEDULER_CONFIG))

    def write(target: Path) -> None:
        write_json(target / SCHEDULER_CONFIG, expected.config)

    return FoundPart(write, PartReport(), expected.config)
