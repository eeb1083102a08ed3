"""A parity pack on disk: its files, and what its modules are given."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity import rule
from videolavit.models import published

OWN = Path(__file__).with_name("own")
"""A small pack of the project's own numbers, so that a checkout without the shared one has something to compare."""


class Pack:
    """Reads the files of a pack; a test that needs a missing one is skipped with the reason."""

    absent = "no parity pack here; name one with --parity-pack DIR --parity-videos DIR"

    def __init__(self, folder: Path, videos: Path | None = None) -> None:
        self.folder = folder
        self.videos = videos
        self._json: dict[str, Any] = {}

    @classmethod
    def given(cls, config: pytest.Config) -> "Pack":
        """The pack that the options name (`tests/conftest.py`)."""
        return cls(config.getoption("--parity-pack"), config.getoption("--parity-videos"))

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def json(self, name: str) -> Any:
        self._need(self.folder / name)
        if name not in self._json:
            self._json[name] = json.loads((self.folder / name).read_text())
        return self._json[name]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        self._need(self.folder / name)
        with np.load(self.folder / name, allow_pickle=False) as file:
            return {key: file[key] for key in file}

    def video(self, name: str) -> Path:
        path = (self.videos or self.folder) / name
        self._need(path)
        return path

    def weights(self, component: str, low_signal: float | None = None) -> dict[str, rule.Array]:
        """The tensors of `MODULE/COMPONENT` under their published names."""
        return rule.parameters(self.json("modules.json")["seed"], self.json("state_dicts.json")[component], low_signal)

    def _need(self, path: Path) -> None:
        if not path.is_file():
            pytest.skip(f"no {path.name}: {self.absent}")


class Module:
    """Entry of a module in a pack: configuration, inputs and weights.

    Args:
        dtype: Data type of networks and floating-point inputs; float64 measures the error of float32.
    """

    def __init__(self, pack: Pack, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        self._pack = pack
        self._dtype = dtype
        self._spec = pack.json("modules.json")["modules"][name]
        self.config: dict[str, Any] = self._spec["config"]

    @property
    def outputs(self) -> dict[str, Any]:
        """Shape, stride and tolerance of each recorded output."""
        return self._spec["outputs"]  # type: ignore[no-any-return]

    @property
    def facts(self) -> dict[str, Any]:
        return self._spec["facts"]  # type: ignore[no-any-return]

    def wants(self, output: str) -> bool:
        """True if an output is recorded, or has to be: a new pack has none yet."""
        return not self.outputs or output in self.outputs

    def recorded(self) -> dict[str, np.ndarray]:
        """The sub-sampled outputs."""
        arrays = self._pack.arrays(f"{self.name}.npz")
        return {key.removeprefix("out."): array for key, array in arrays.items() if key.startswith("out.")}

    def input(self, name: str) -> Tensor:
        spec = self._spec["inputs"][name]
        if spec["kind"] == "stored":
            array = self._pack.arrays(f"{self.name}.npz")[spec["key"]]
        else:
            array = rule.made_input(self._pack.json("modules.json")["seed"], spec)
        tensor = torch.from_numpy(array)
        assert list(tensor.shape) == spec["shape"]
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def tensors(self, component: str, low_signal: bool = False) -> dict[str, Tensor]:
        weights = self._pack.weights(f"{self.name}/{component}", self.config["low_signal"] if low_signal else None)
        return {key: torch.from_numpy(value) for key, value in weights.items()}

    def network(
        self,
        component: str,
        words: Mapping[str, Any] | None = None,
        low_signal: bool = False,
        codebook: Tensor | None = None,
    ) -> Any:
        """A component with the pack's weights.

        Args:
            words: Configuration of the network; by default the module's.
            low_signal: The variant with small weights.
            codebook: Codebook of a condition decoder.
        """
        state = self.tensors(component, low_signal)
        made = published.build_published(component, words or self.config, state, codebook)
        return made if self._dtype == torch.float32 else made.to(self._dtype)


def case_ids(pack: Pack, name: str, *keys: str) -> list[str]:
    """Names of the cases at a place of one of the pack's JSON files; none where it is absent."""
    if not pack.has(name):
        return []
    cases = pack.json(name)
    for key in keys:
        cases = cases.get(key, {})
    return list(cases)
