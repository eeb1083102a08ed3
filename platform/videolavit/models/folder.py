"""A model on disk: one sub-folder a part, safetensors and JSON, nothing pickled.

    visual_tokenizer/  motion_tokenizer/  language_model/
    keyframe_detokenizer/{conditions,unet,vae,scheduler}/
    video_detokenizer/{motion_encoder,unet,vae,scheduler}/
    understanding/{language_model,visual_tokenizer,motion_tokenizer}/

Parts are loaded one by one, so that a command holds only what it uses. A preset's name in place of a folder stands for
untrained weights, made from a fixed seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from videolavit.config.model import PRESETS, ModelConfig, OutputSizes, load_preset
from videolavit.vocabulary import Vocabulary

from .keyframe_detokenizer import ConditionDecoder, KeyframeDetokenizer, ddim_scheduler
from .language_model import UnderstandingModel, byte_tokenizer
from .layers import set_norm_groups, speed_up_temporal_convolutions
from .motion_tokenizer import MotionTokenizer, MotionTokenizerConfig
from .network import ModelError, Network, parse_config
from .video_detokenizer import MotionConditionEncoder, MotionUNet, VideoDetokenizer, edm_scheduler
from .visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

MODEL_FILE = "model.json"
FORMAT = "videolavit-1"
SEED = 0
CODEBOOK = "quantize.embedding.weight"

_SAYINGS = ("transformers_version", "dtype", "architectures")
"""What libraries write into a config about themselves."""

_Build = Callable[[ModelConfig], Any]


def _language_model(config: ModelConfig) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config.language_model.llama(config.vocabulary.size))


def _plain(config: ModelConfig) -> VisualTokenizer:
    """The tokenizer that makes codes has no continuous features; understanding has a tokenizer of its own."""
    return VisualTokenizer(replace(config.visual_tokenizer, features_dim=None))


PARTS: dict[str, _Build] = {
    "visual_tokenizer": _plain,
    "motion_tokenizer": lambda config: MotionTokenizer(config.motion_tokenizer),
    "keyframe_detokenizer/conditions": lambda config: ConditionDecoder(config.keyframe_detokenizer.conditions),
    "keyframe_detokenizer/unet": lambda config: config.keyframe_detokenizer.unet.build(),
    "keyframe_detokenizer/vae": lambda config: config.keyframe_detokenizer.vae.build(),
    "keyframe_detokenizer/scheduler": lambda config: ddim_scheduler(),
    "video_detokenizer/motion_encoder": lambda config: MotionConditionEncoder(config.video_detokenizer.motion_encoder),
    "video_detokenizer/unet": lambda config: MotionUNet(config.video_detokenizer.unet),
    "video_detokenizer/vae": lambda config: config.video_detokenizer.vae.build_temporal(),
    "video_detokenizer/scheduler": lambda config: edm_scheduler(),
    "language_model": _language_model,
    "understanding/language_model": _language_model,
    "understanding/visual_tokenizer": lambda config: VisualTokenizer(config.visual_tokenizer),
    "understanding/motion_tokenizer": lambda config: MotionTokenizer(config.motion_tokenizer),
}
"""Every part of a model, and how it is made from scratch."""

_NETWORKS: dict[str, type[Network[Any]]] = {
    "visual_tokenizer": VisualTokenizer,
    "motion_tokenizer": MotionTokenizer,
    "conditions": ConditionDecoder,
    "motion_encoder": MotionConditionEncoder,
    "video_detokenizer/unet": MotionUNet,
}
DIFFUSERS = {
    "keyframe_detokenizer/unet": "UNet2DConditionModel",
    "keyframe_detokenizer/vae": "AutoencoderKL",
    "video_detokenizer/vae": "AutoencoderKLTemporalDecoder",
}
"""Parts that are stock networks of `diffusers`."""

SCHEDULERS = ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
"""Schedulers of `diffusers` that a model may have."""


class ModelFolder:
    """A model by the path of its folder, or by the name of a preset.

    Args:
        location: Folder in this project's format, or `tiny`, `small` or `video-lavit-7b`.

    Raises:
        ModelError: there is no model there.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self.path = Path(self.location)
        self._preset = load_preset(self.location) if self.location in PRESETS and not self.path.is_dir() else None
        if self._preset is None and not (self.path / MODEL_FILE).is_file():
            raise ModelError(
                f"no model in {self.location}: {MODEL_FILE} is missing. Name a model folder, one of the presets "
                f"{', '.join(PRESETS)}, or make a folder with `videolavit import-checkpoint`"
            )
        self._digests: dict[str, str] = {}

    @property
    def is_trained(self) -> bool:
        """False if all weights are as they were drawn."""
        return bool(self.trained_parts)

    @property
    def trained_parts(self) -> list[str]:
        """The parts whose weights are not as they were drawn."""
        trained = self._facts["trained"] if self._preset is None else False
        if isinstance(trained, list):
            return [part for part in PARTS if part in trained]
        return [part for part in PARTS if self.has(part)] if trained else []

    @property
    def sizes(self) -> OutputSizes:
        """Default sizes of what it makes."""
        return (
            self._preset.sizes
            if self._preset
            else parse_config(OutputSizes, self._facts["sizes"], self.path / MODEL_FILE)
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Layout of the language model's ids."""
        if self._preset:
            return self._preset.vocabulary
        visual = self._config("visual_tokenizer")["num_codes"]
        motion = self._config("motion_tokenizer")["num_codes"]
        text = self._config("language_model")["vocab_size"] - visual - motion - 4
        if text < 1:
            raise ModelError(f"the vocabulary of {self.location}/language_model is smaller than the codebooks")
        return Vocabulary(text, visual, motion)

    def config(self, part: str) -> Any:
        """The config of one of this project's networks, without its weights. Raises ModelError."""
        kind = _NETWORKS.get(part) or _NETWORKS[part.split("/")[-1]]
        if self._preset:
            with torch.device("meta"):
                return PARTS[part](self._preset).config
        return parse_config(kind.Config, self._config(part), self.path / part)

    @property
    def motion_tokens(self) -> int:
        """Codes of a clip's motion, 135 as published."""
        config: MotionTokenizerConfig = self.config("motion_tokenizer")
        return config.num_tokens

    @property
    def num_patches(self) -> int:
        """Patches of a picture, and so its most visual codes: 256 as published."""
        config: VisualTokenizerConfig = self.config("visual_tokenizer")
        return config.num_patches

    def pixel_multiple(self, unit: Literal["keyframe_detokenizer", "video_detokenizer"]) -> int:
        """Sides of what a detokenizer makes must be multiples of this, in pixels; known without its weights."""
        levels = [len(self._channels(f"{unit}/{network}")) - 1 for network in ("vae", "unet")]
        return int(1 << sum(levels))

    def _channels(self, part: str) -> Sequence[int]:
        """Channels of each level of a U-Net or VAE."""
        if self._preset is None:
            channels: Sequence[int] = self._config(part)["block_out_channels"]
            return channels
        unit, network = part.split("/")
        return getattr(getattr(self._preset, unit), network).block_out_channels

    def text_tokenizer(self, part: str = "language_model") -> PreTrainedTokenizerBase:
        """The tokenizer of a language model.

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
            return AutoTokenizer.from_pretrained(self.path / part, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"no text tokenizer in {self.path / part}: {error}") from None

    def has(self, part: str) -> bool:
        return self._preset is not None or (self.path / part).is_dir()

    def load(self, part: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32) -> Any:
        """A part, in evaluation mode, without gradients.

        Args:
            part: A key of `PARTS`.
            dtype: None keeps the stored one.

        Raises:
            ModelError: the model has no such part, or one that cannot be read.
        """
        own = part in _NETWORKS or part.split("/")[-1] in _NETWORKS
        with contextlib.nullcontext() if own else quiet_libraries():
            module = self._make(part) if self._preset else self._read(part)
            if isinstance(module, ConditionDecoder):
                module.codebook = self._codebook()
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False).to(device=device, dtype=dtype)
        return module

    def digest(self, part: str) -> str:
        """SHA-256 of a part's config and tensors; the same for a preset and for a folder it was saved to."""
        if part not in self._digests:
            if self._preset:
                module = self.load(part, dtype=None)
                state = module.state_dict()
                self._digests[part] = _digest(_config_of(module), sorted(state), state.__getitem__)
            else:
                with open_tensors(self.path / part) as (names, tensor):
                    self._digests[part] = _digest(self._config(part), names, tensor)
        return self._digests[part]

    def save(self, target: Path) -> None:
        """Writes every part into a folder.

        Raises:
            ModelError: the folder has something in it.
        """
        start_folder(target, self.sizes, trained=self.trained_parts)
        for part in filter(self.has, PARTS):
            with quiet_libraries():
                save_part(self.load(part, dtype=None), target / part)
            if part.endswith("language_model"):
                self.text_tokenizer(part).save_pretrained(target / part)

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

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts = _read_json(self.path / MODEL_FILE)
        if facts.get("format") != FORMAT:
            raise ModelError(
                f"{self.path / MODEL_FILE} has format {facts.get('format')!r}, this version reads {FORMAT!r}"
            )
        return facts

    def _config(self, part: str) -> dict[str, Any]:
        return _read_json(self.path / part / "config.json")

    def _make(self, part: str) -> Any:
        """Untrained weights: the same in every process."""
        assert self._preset is not None
        _check_part(part)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED ^ zlib.crc32(part.encode()))
            return PARTS[part](self._preset)

    def _read(self, part: str) -> Any:
        _check_part(part)
        folder, name = self.path / part, part.split("/")[-1]
        if not folder.is_dir():
            raise ModelError(f"{self.location} has no {part}")
        if name == "scheduler":
            return _read_scheduler(folder)
        if part in DIFFUSERS:
            return _read_diffusers(folder, DIFFUSERS[part])
        if name == "language_model":
            return _read_language_model(folder)
        return (_NETWORKS.get(part) or _NETWORKS[name]).load(folder)

    def _codebook(self) -> Tensor:
        """That of the visual tokenizer, without the rest of it."""
        if self._preset:
            codebook: Tensor = self._make("visual_tokenizer").quantize.embedding.weight.detach()
            return codebook
        with open_tensors(self.path / "visual_tokenizer") as (names, tensor):
            if CODEBOOK in names:
                return tensor(CODEBOOK)
        raise ModelError(f"{self.location}/visual_tokenizer has no codebook ({CODEBOOK})")


def start_folder(target: Path, sizes: OutputSizes, trained: bool | list[str]) -> None:
    """Makes a model folder without parts.

    Args:
        trained: Whether its weights are trained, or which parts are.

    Raises:
        ModelError: the folder has something in it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} is not empty; name a new folder for the model")
    target.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "trained": trained, "sizes": asdict(sizes)}
    (target / MODEL_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def save_part(part: Any, folder: Path) -> None:
    """Writes a part in its own format: this project's networks, or those of `diffusers` and `transformers`."""
    if isinstance(part, Network):
        part.save(folder)
    else:
        part.save_pretrained(folder)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps progress bars and remarks on loading out of a terminal."""
    import diffusers.utils.logging
    import transformers.utils.logging

    restore = [(library, library.get_verbosity()) for library in (diffusers.utils.logging, transformers.utils.logging)]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    for library, _ in restore:
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in restore:
            library.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _check_part(part: str) -> None:
    if part not in PARTS:
        raise ModelError(f"a model has no part {part!r}; the parts are {', '.join(PARTS)}")


def _read_diffusers(folder: Path, kind: str) -> Any:
    import diffusers

    with open_tensors(folder) as (names, tensor):
        stored = tensor(names[0]).dtype  # the library would make it float32
    with _naming(folder):
        network = getattr(diffusers, kind).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=stored
        )
    if "norm_num_groups" in network.config:  # not every network of the library minds it
        set_norm_groups(network, network.config.norm_num_groups)
    speed_up_temporal_convolutions(network)
    return network


def _read_language_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with _naming(folder):
        return AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="auto", trust_remote_code=False
        )


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns what the libraries raise over a folder into a ModelError that names it."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {folder}: {error}") from None


def _read_scheduler(folder: Path) -> Any:
    import diffusers

    config = _read_json(folder / "scheduler_config.json")
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        raise ModelError(f"{folder} has the scheduler {name!r}; known are {', '.join(SCHEDULERS)}")
    return getattr(diffusers, name).from_config(config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"cannot read {path}: {error}") from None


def _config_of(module: Any) -> dict[str, Any]:
    """What a part's `config.json` would say."""
    if isinstance(module, Network):
        return asdict(module.config)
    library = module if hasattr(module, "to_json_string") else module.config  # diffusers, transformers
    return dict(json.loads(library.to_json_string()))


def _digest(config: dict[str, Any], names: Sequence[str], tensor: Callable[[str], Tensor]) -> str:
    ours = {name: value for name, value in config.items() if name[0] != "_" and name not in _SAYINGS}
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True).encode())
    for name in names:
        values = tensor(name).detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[tuple[list[str], Callable[[str], Tensor]]]:
    """The sorted names of a part's tensors on disk, and a function that reads one of them.

    Raises:
        ModelError: there are none, or a file cannot be read.
    """
    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {path}: {error}") from None
            where |= dict.fromkeys(file.keys(), file)
        if not where:
            raise ModelError(f"no weights in {folder}")
        yield sorted(where), lambda name: where[name].get_tensor(name)
