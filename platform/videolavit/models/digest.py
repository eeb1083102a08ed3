"""SHA-256 of a part: what decides its results, without what libraries write about themselves.

Token shards record these digests, so they must never change for the same weights.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .network import Network

LIBRARY_FIELDS = ("transformers_version", "dtype", "architectures")
"""Fields of a config in which a library describes itself."""


def digest(config: dict[str, Any], names: Sequence[str], tensor: Callable[[str], Tensor]) -> str:
    """Computes the digest of a part, as hexadecimal digits.

    Args:
        config: Content of its `config.json`.
        names: Names of its tensors, sorted.
        tensor: Returns the tensor of a name.
    """
    fields = {name: value for name, value in config.items() if name[0] != "_" and name not in LIBRARY_FIELDS}
    sha256 = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in names:
        values = tensor(name).detach().cpu().contiguous()
        sha256.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        sha256.update(values.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def config_of(module: Any) -> dict[str, Any]:
    """Returns the content that a part's `config.json` would have."""
    if isinstance(module, Network):
        return asdict(module.config)
    owner = module if hasattr(module, "to_json_string") else module.config  # diffusers, transformers
    return dict(json.loads(owner.to_json_string()))
