"""Between the published layout of weights and this project's model folders, one file at a time."""

from .exporting import ExportPlan, plan_export
from .importing import ImportPlan, model_config, plan_import
from .layout import selected_parts
from .new_folder import OnWrite, new_folder
from .tensors import WeightsError

__all__ = [
    "ExportPlan",
    "ImportPlan",
    "OnWrite",
    "WeightsError",
    "model_config",
    "new_folder",
    "plan_export",
    "plan_import",
    "selected_parts",
]
