"""Loading and placement of the parts of a model on a device."""

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
"""Parts of a model that are loaded and moved between devices as a whole."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RuntimeSettings:
    """Placement of a model.

    Args:
        device: Device of torch, such as `cpu` or `cuda:1`; `auto` for a GPU if there is one, and else the CPU.
        dtype: Data type of the weights; `auto` for bfloat16 on a GPU and float32 on a CPU.
        offload: Keep only the part in use on the device and the others in main memory, for a small GPU.
        compile: Compile the U-Nets of the detokenizers with torch.compile: slower to start, faster in the long run.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    offload: bool = False
    compile: bool = False

    def torch_device(self) -> torch.device:
        """Raises ModelError for a device that torch cannot use."""
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
    """Model whose parts are loaded at their first use and then kept in memory.

    Args:
        model: Folder or preset to load from.
        settings: Device and data type.
        loaded: Parts that are in memory already, by name, used in place of the folder's.
    """

    def __init__(
        self, model: ModelFolder, settings: RuntimeSettings | None = None, loaded: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.settings = settings or RuntimeSettings()
        self.device, self.dtype = self.settings.torch_device(), self.settings.torch_dtype()
        self._parts: dict[str, Any] = dict(loaded or {})

    def loaded(self, part: str) -> Any:
        """Returns a part on whatever device it is, for reading its configuration; `use` is for running it.

        Raises:
            ModelError: as `use`.
        """
        if part not in self._parts:
            self._parts[part] = self._load(part)
        return self._parts[part]

    @contextlib.contextmanager
    def use(self, part: str) -> Iterator[Any]:
        """Yields a part on the device. With `offload` it leaves the device when the block ends.

        Raises:
            ModelError: the model has no such part, or its weights do not fit the network.
        """
        loaded = self.loaded(part)
        _move(loaded, self.device)
        try:
            yield loaded
        finally:
            if self.settings.offload and self.device.type != "cpu":
                _move(loaded, torch.device("cpu"))
                torch.cuda.empty_cache()

    def _load(self, part: str) -> Any:
        composed = {
            "keyframe_detokenizer": self.model.keyframe_detokenizer,
            "video_detokenizer": self.model.video_detokenizer,
            "understanding": self.model.understanding,
        }
        device = torch.device("cpu") if self.settings.offload else self.device
        load: Any = composed.get(part) or partial(self.model.load, part)
        loaded = load(device, self.dtype)
        if self.settings.compile and part.endswith("detokenizer"):
            loaded.unet.compile()
        if self.device.type == "cpu" and part.endswith(("language_model", "understanding")):
            pack_linears(loaded.language_model if part == "understanding" else loaded)
        return loaded


def _move(part: Any, device: torch.device) -> None:
    networks = (
        [part] if isinstance(part, nn.Module) else [getattr(part, field.name) for field in dataclasses.fields(part)]
    )
    for network in networks:
        if isinstance(network, nn.Module):
            network.to(device)
