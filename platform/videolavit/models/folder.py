"""A model on disk, or a preset: parts are loaded one by one, so that a command holds only what it uses.

visual_tokenizer/  motion_tokenizer/  language_model/
keyframe_detokenizer/{conditions,unet,vae,scheduler}/
video_detokenizer/{motion_encoder,unet,vae,scheduler}/
understanding/{language_model,visual_tokenizer,motion_tokenizer}/
model.json
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from videolavit.vocabulary import Vocabulary

from .config import OutputSizes
from .digest import config_of, digest
from .keyframe_detokenizer import ConditionDecoder, KeyframeDetokenizer
from .language_model import UnderstandingModel, byte_tokenizer
from .model_file import MODEL_FILE, ModelFacts, finish_model_folder, new_model_folder, read_facts, verify_files
from .motion_tokenizer import MotionTokenizerConfig
from .network import CONFIG, ModelError, parse_config, read_json
from .part_files import language_model_class, open_tensors, outline_language_model, read_part, save_part, save_tokenizer
from .parts import NETWORKS, PARTS, build_part, check_part
from .presets import PRESETS, load_preset
from .quantizer import CODEBOOK
from .quiet import quiet_libraries
from .shipped import SHIPPED, shipped_folder
from .video_detokenizer import VideoDetokenizer
from .visual_tokenizer import VisualTokenizerConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelFolder:
    """A model by the path of its folder, or by the name of one that ships with the package.

    A preset's name stands for untrained weights, made from a fixed seed.

    Args:
        location: Folder in this project's format; or `shapes`, the shipped model; or a preset: `tiny`, `mini`, `small`
            or `video-lavit-7b`.

    Raises:
        ModelError: there is no model at the location.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self.path = Path(self.location)
        is_name = not self.path.is_dir()
        self._preset = load_preset(self.location) if is_name and self.location in PRESETS else None
        if is_name and self.location in SHIPPED:
            self.path = shipped_folder(self.location)
        if self._preset is None and not (self.path / MODEL_FILE).is_file():
            raise ModelError(
                f"no model in {self.location}: {MODEL_FILE} is missing. Name a model folder, the shipped model "
                f"{', '.join(SHIPPED)}, one of the presets {', '.join(PRESETS)}, or make a folder with "
                "`videolavit import-checkpoint`"
            )
        self._digests: dict[str, str] = {}
        self._verified: set[str] = set()

    # ---- facts, known without loading weights ------------------------------------------------------------------

    @cached_property
    def facts(self) -> ModelFacts:
        """Content of `model.json`, as it is or would be."""
        if self._preset:
            return ModelFacts(sizes=self._preset.sizes, trained=[], vocabulary=self._preset.vocabulary)
        return read_facts(self.path)

    @property
    def is_trained(self) -> bool:
        """True if any part was trained."""
        return bool(self.trained_parts)

    @property
    def trained_parts(self) -> list[str]:
        """Names of the parts that were trained."""
        if isinstance(self.facts.trained, list):
            return [part for part in PARTS if part in self.facts.trained]
        return [part for part in PARTS if self.has(part)] if self.facts.trained else []

    @property
    def sizes(self) -> OutputSizes:
        """Default sizes of generated pictures and videos."""
        return self.facts.sizes

    @property
    def vocabulary(self) -> Vocabulary:
        """Layout of the language model's ids. Raises ModelError without a language model and both tokenizers."""
        if self.facts.vocabulary is None:
            raise ModelError(f"{self.location} has no language model with both tokenizers")
        return self.facts.vocabulary

    @cached_property
    def motion_tokens(self) -> int:
        """Motion codes per clip: 135 as published."""
        config: MotionTokenizerConfig = self.config("motion_tokenizer")
        return config.num_tokens

    @cached_property
    def num_patches(self) -> int:
        """Patches per picture, the upper limit of its visual codes: 256 as published."""
        config: VisualTokenizerConfig = self.config("visual_tokenizer")
        return config.num_patches

    @cached_property
    def context_length(self) -> int:
        """Largest number of tokens of the language model's context."""
        if self._preset:
            return self._preset.language_model.max_positions
        _, config = language_model_class(self.path / "language_model")
        return int(config.max_position_embeddings)

    def config(self, part: str) -> Any:
        """Returns the config of a part that is one of this project's networks. Raises ModelError."""
        if part not in NETWORKS:
            raise ModelError(f"{part} has no config of this project; those that have one are {', '.join(NETWORKS)}")
        if self._preset:
            with torch.device("meta"):
                return PARTS[part](self._preset).config
        return parse_config(NETWORKS[part].Config, self._stored_config(part), self.path / part)

    def pixel_multiple(self, unit: Literal["keyframe_detokenizer", "video_detokenizer"]) -> int:
        """Returns the number, in pixels, of which the sides of a detokenizer's pictures must be multiples."""
        levels = [len(self._channels(f"{unit}/{network}")) - 1 for network in ("vae", "unet")]
        return int(1 << sum(levels))

    @property
    def is_folder(self) -> bool:
        """True if the parts lie in files; False for a preset."""
        return self._preset is None

    def has(self, part: str) -> bool:
        return self._preset is not None or (self.path / part).is_dir()

    def digest(self, part: str) -> str:
        """Returns the SHA-256 of a part's config and tensors; saving a preset does not change it."""
        if part not in self._digests:
            if self._preset:
                module = self.load(part, dtype=None)
                state = module.state_dict()
                self._digests[part] = digest(config_of(module), sorted(state), state.__getitem__)
            else:
                with open_tensors(self.path / part) as (names, tensor):
                    self._digests[part] = digest(self._stored_config(part), names, tensor)
        return self._digests[part]

    def file_digests(self, part: str) -> dict[str, str]:
        """Returns the stored digest of each file of a part, by its path in the model; empty if none is stored."""
        return {name: value for name, value in (self.facts.files or {}).items() if name.startswith(f"{part}/")}

    # ---- loading and saving -------------------------------------------------------------------------------------

    def load(self, part: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32) -> Any:
        """Loads a part, in evaluation mode, without gradients.

        Args:
            part: Name of a part, a key of `PARTS`.
            device: Device of its weights.
            dtype: Data type of its weights; None for the stored one.

        Raises:
            ModelError: there is no such part, or it cannot be read.
        """
        check_part(part)
        with contextlib.nullcontext() if part in NETWORKS else quiet_libraries():
            if self._preset:
                module = build_part(part, self._preset)
            elif self.has(part):
                self._verify(part)
                module = read_part(part, self.path / part)
            else:
                raise ModelError(f"{self.location} has no {part}")
            if isinstance(module, ConditionDecoder):
                module.codebook = self._codebook()
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False).to(device=device, dtype=dtype)
        return module

    def outline(self, part: str) -> Any:
        """Makes a language model without its weights, on the meta device, in float32; its files are verified.

        Raises:
            ModelError: there is no such part in a folder, or it cannot be read.
        """
        if self._preset or not self.has(part):
            raise ModelError(f"{self.location} has no files of a {part}")
        self._verify(part)
        return outline_language_model(self.path / part).eval()

    def text_tokenizer(self, part: str = "language_model") -> PreTrainedTokenizerBase:
        """Loads the text tokenizer of a language model, which reads `</s>` and the like in a text as letters.

        Raises:
            ModelError: there is none.
        """
        if self._preset:
            language_model = self._preset.language_model
            tokenizer = byte_tokenizer(language_model.max_positions)
            if len(tokenizer) != language_model.text_size:
                raise ModelError(f"the preset {self.location} has no text tokenizer; import a checkpoint that has one")
            return tokenizer
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                self.path / part, local_files_only=True, split_special_tokens=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no text tokenizer in {self.path / part}: {error}") from None

    def keyframe_detokenizer(self, device: torch.device | str, dtype: torch.dtype) -> KeyframeDetokenizer:
        parts = ("conditions", "unet", "vae", "scheduler")
        return KeyframeDetokenizer(*(self.load(f"keyframe_detokenizer/{part}", device, dtype) for part in parts))

    def video_detokenizer(self, device: torch.device | str, dtype: torch.dtype) -> VideoDetokenizer:
        parts = ("motion_encoder", "unet", "vae", "scheduler")
        return VideoDetokenizer(*(self.load(f"video_detokenizer/{part}", device, dtype) for part in parts))

    def understanding(self, device: torch.device | str, dtype: torch.dtype) -> UnderstandingModel:
        names = ("language_model", "visual_tokenizer", "motion_tokenizer")
        language_model, visual, motion = (self.load(f"understanding/{name}", device, dtype) for name in names)
        return UnderstandingModel(language_model, visual, motion, self.vocabulary)

    def save(self, target: Path, dtype: torch.dtype | None = None, **changes: Any) -> None:
        """Writes every part into a new folder.

        Args:
            target: New folder.
            dtype: Data type of the weights; None for the stored one.
            changes: Fields of `facts` that are others in the new model.

        Raises:
            ModelError: the folder has content.
        """
        new_model_folder(target)
        for part in filter(self.has, PARTS):
            with quiet_libraries():
                save_part(self.load(part, dtype=dtype), target / part)
            if part.endswith("language_model"):
                save_tokenizer(self.text_tokenizer(part), target / part)
        finish_model_folder(target, replace(self.facts, **{"trained": self.trained_parts} | changes))

    # ---- details ------------------------------------------------------------------------------------------------

    def _verify(self, part: str) -> None:
        """Compares a part's files with their digests, once. Raises ModelError."""
        if part not in self._verified:
            verify_files(self.path, self.file_digests(part))
            self._verified.add(part)

    def _stored_config(self, part: str) -> dict[str, Any]:
        return read_json(self.path / part / CONFIG)

    def _channels(self, part: str) -> Sequence[int]:
        """Returns the channels of each level of a U-Net or VAE."""
        if self._preset is None:
            channels: Sequence[int] = self._stored_config(part)["block_out_channels"]
            return channels
        unit, network = part.split("/")
        return getattr(getattr(self._preset, unit), network).block_out_channels

    def _codebook(self) -> Tensor:
        """Reads the visual tokenizer's codebook without the rest of it."""
        if self._preset:
            codebook: Tensor = build_part("visual_tokenizer", self._preset).quantize.embedding.weight.detach()
            return codebook
        self._verify("visual_tokenizer")
        with open_tensors(self.path / "visual_tokenizer") as (names, tensor):
            if CODEBOOK in names:
                return tensor(CODEBOOK)
        raise ModelError(f"{self.location}/visual_tokenizer has no codebook ({CODEBOOK})")
