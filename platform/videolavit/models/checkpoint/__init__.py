"""Conversion between the published layout of weights and this project's model folders."""

from .exporting import ExportSettings, export_checkpoint
from .importing import ImportSettings, import_checkpoint
from .summary import CheckpointSummary, PartSummary
from .tensors import WeightsError

__all__ = [
    "CheckpointSummary",
    "ExportSettings",
    "ImportSettings",
    "PartSummary",
    "WeightsError",
    "export_checkpoint",
    "import_checkpoint",
]
