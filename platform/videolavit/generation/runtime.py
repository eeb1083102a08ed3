"""Where the parts of a model run, and in what precision."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from videolavit.models.folder import ModelFolder
from videolavit.models.network import STRICT, ModelError

from .packed_linear import pack_linears

MODEL_PARTS = (
    "visual_tokenizer",
    "motion_tokenizer",
    "language_model",
    "understanding",
    "keyframe_detokenizer",
    "video_detokenizer",
)
"""What is moved as a whole."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeSettings:
    """Placement of a model.

    Args:
        device: `auto` takes a GPU where there is one; else a name of torch, as `cpu` or `cuda:1`.
        dtype: `auto` is bfloat16 on a GPU and float32 on a CPU.
        offload: Keep only the unit in use on the device, the others in main memory: for a small GPU.
        compile: Compile the networks of the samplers with torch.compile: slower to start, faster in the long run.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: bool = False
    compile: bool = False

    def torch_device(self) -> torch.device:
        """Raises ModelError for a device that torch does not have."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from None
        return device

    def torch_dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.float32 if self.torch_device().type == "cpu" else torch.bfloat16
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Runtime:
    """Loads units when they are first used, and keeps them.

    Args:
        model: Where they come from.
        settings: Where they go.
        units: Some that are there already, in place of the model's.
    """

    def __init__(
        self, model: ModelFolder, settings: RuntimeSettings | None = None, units: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.settings = settings or RuntimeSettings()
        self.device, self.dtype = self.settings.torch_device(), self.settings.torch_dtype()
        self._units: dict[str, Any] = dict(units or {})

    def loaded(self, unit: str) -> Any:
        """A unit wherever it is, to ask for its sizes and not to run it. Raises ModelError as `use`."""
        if unit not in self._units:
            self._units[unit] = self._load(unit)
        return self._units[unit]

    @contextlib.contextmanager
    def use(self, unit: str) -> Iterator[Any]:
        """A unit on the device for as long as the body lasts, and with `offload` no longer.

        Raises:
            ModelError: the model has no such unit, or it does not fit.
        """
        loaded = self.loaded(unit)
        _move(loaded, self.device)
        try:
            yield loaded
        finally:
            if self.settings.offload and self.device.type != "cpu":
                _move(loaded, torch.device("cpu"))
                torch.cuda.empty_cache()

    def _load(self, unit: str) -> Any:
        grouped = {
            "keyframe_detokenizer": self.model.keyframe_detokenizer,
            "video_detokenizer": self.model.video_detokenizer,
            "understanding": self.model.understanding,
        }
        start = torch.device("cpu") if self.settings.offload else self.device
        load: Any = grouped.get(unit) or partial(self.model.load, unit)
        loaded = load(start, self.dtype)
        if self.settings.compile and unit.endswith("detokenizer"):
            loaded.unet.compile()
        if self.device.type == "cpu" and unit.endswith(("language_model", "understanding")):
            pack_linears(loaded.language_model if unit == "understanding" else loaded)
        return loaded


def _move(unit: Any, device: torch.device) -> None:
    parts = [unit] if isinstance(unit, nn.Module) else [getattr(unit, field.name) for field in dataclasses.fields(unit)]
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
