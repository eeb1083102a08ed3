"""The rule by which a pack's weights and inputs follow from their names (the README of the shared pack)."""

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMULA = "red = (255*x)//(w-1), green = (255*y)//(h-1), blue = ((x//9 + y//7) % 2)*200 + 20, integer arithmetic, uint8"
"""The one picture that is not noise."""

Array = NDArray[np.float32]


def parameter(seed: int, key: str, shape: Sequence[int]) -> Array:
    """The weight of a state-dict key."""
    normal = _generator(seed, key).standard_normal(shape, dtype=np.float32)
    if len(shape) == 0:
        value = np.float32(0.3) * normal
    elif len(shape) == 1 and key.endswith("weight"):
        value = np.float32(1) + np.float32(0.1) * normal
    elif len(shape) == 1:
        value = np.float32(0.1) * normal
    elif shape[0] == 1:
        value = np.float32(0.5) * normal
    else:
        value = normal / np.float32(math.sqrt(math.prod(shape[1:])))
    return np.asarray(value, np.float32)


def parameters(seed: int, shapes: Mapping[str, Sequence[int]], low_signal: float | None = None) -> dict[str, Array]:
    """The weights of a component.

    Args:
        low_signal: Factor of all but the norms' weights in the variant that shows epsilons.
    """
    state = {key: parameter(seed, key, shape) for key, shape in shapes.items()}
    if low_signal is None:
        return state
    return {
        key: value if value.ndim == 1 and key.endswith("weight") else value * np.float32(low_signal)
        for key, value in state.items()
    }


def digest(state: Mapping[str, Array]) -> str:
    """SHA-256 over the values of all entries in the order of their keys."""
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(state[key].astype("<f4").tobytes())
    return sha.hexdigest()


def made_input(seed: int, spec: Mapping[str, Any]) -> NDArray[Any]:
    """An input that is not stored.

    Raises:
        ValueError: a kind or formula that is not known here.
    """
    if spec["kind"] == "normal":
        normal = _generator(seed, spec["key"]).standard_normal(spec["shape"], dtype=np.float32)
        return np.asarray(np.float32(spec["scale"]) * normal, np.float32)
    if spec["kind"] == "integers":
        return _generator(seed, spec["key"]).integers(spec["low"], spec["high"], spec["shape"], dtype=spec["dtype"])
    if spec["kind"] == "formula" and spec["formula"] == FORMULA:
        return _picture(*spec["shape"][:2])
    raise ValueError(f"an input of an unknown kind: {spec}")


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    channels = (255 * x) // (width - 1), (255 * y) // (height - 1), ((x // 9 + y // 7) % 2) * 200 + 20
    return np.stack(channels, axis=-1).astype(np.uint8)


def _generator(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
