"""Weights that each rank reads for itself: its share, into a network that was made without any."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from videolavit.models.network import ModelError


def is_shared_out() -> bool:
    """True if several ranks train together, each of which holds a share of the weights."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def make_tensors(network: Any, device: torch.device) -> None:
    """Gives a network of `transformers` on the meta device tensors, of this rank's share where it is sharded; in place.

    Buffers that no file holds get their values; those of parameters are left open.
    """
    network.to_empty(device=device)
    for module in network.modules():
        if next(module.buffers(recurse=False), None) is not None:
            network._init_weights(module)


def read_share(network: nn.Module, folder: Path, group: Any = None) -> None:
    """Fills a network's parameters from safetensors: of those that are sharded, this rank's share only.

    Args:
        network: Network with tensors, on all ranks.
        folder: Folder of the network's files, as `transformers` writes them.
        group: Process group of the ranks, for values of the host.

    Raises:
        ModelError: a tensor is missing, or of another shape.
    """
    tensors = {name: value.detach() for name, value in network.named_parameters()}
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()
        raise ModelError(f"cannot load {folder}: {first[-1] if first else type(error).__name__}") from None
