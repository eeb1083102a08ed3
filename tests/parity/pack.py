"""A parity pack on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Pack:
    """Reads the files of a pack; a test that needs a missing one is skipped with the reason."""

    absent = "no parity pack here; name one with --parity-pack DIR --parity-videos DIR"

    def __init__(self, config: pytest.Config) -> None:
        self.folder: Path = config.getoption("--parity-pack")
        self.videos: Path = config.getoption("--parity-videos")
        self._json: dict[str, Any] = {}

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
        self._need(self.videos / name)
        return self.videos / name

    def _need(self, path: Path) -> None:
        if not path.is_file():
            pytest.skip(f"no {path.name}: {self.absent}")


def case_ids(pack: Pack, name: str, *keys: str) -> list[str]:
    """Names of the cases at a place of one of the pack's JSON files; none where it is absent."""
    if not pack.has(name):
        return []
    cases = pack.json(name)
    for key in keys:
        cases = cases.get(key, {})
    return list(cases)
