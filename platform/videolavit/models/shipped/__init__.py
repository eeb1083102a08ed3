"""Trained models that ship with the package, a folder each (docs/shapes.md)."""

from importlib import resources
from pathlib import Path

SHIPPED = ("shapes",)


def shipped_folder(name: str) -> Path:
    """Folder of a shipped model."""
    return Path(str(resources.files(__name__))) / name
