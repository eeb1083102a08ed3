"""Registry of the parts of a model: their names, their classes, and how each is built with untrained weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .config import ModelConfig
from .keyframe_detokenizer import ConditionDecoder, ddim_scheduler
from .motion_tokenizer import MotionTokenizer
from .network import ModelError, Network
from .video_detokenizer import MotionConditionEncoder, MotionUNet, edm_scheduler
from .visual_tokenizer import VisualTokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SEED = 0
"""Seed of untrained weights, which are the same in every process."""


def _language_model(config: ModelConfig) -> LlamaForCausalLM:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config.language_model.llama(config.vocabulary.size))


def _visual_tokenizer(config: ModelConfig) -> VisualTokenizer:
    """Builds the tokenizer of generation, which needs no continuous features."""
    return VisualTokenizer(replace(config.visual_tokenizer, features_dim=None))


PARTS: dict[str, Callable[[ModelConfig], Any]] = {
    "visual_tokenizer": _visual_tokenizer,
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
"""Name of each part, which is its folder in a model, and a function that builds it from scratch."""

NETWORKS: dict[str, type[Network[Any]]] = {
    "visual_tokenizer": VisualTokenizer,
    "motion_tokenizer": MotionTokenizer,
    "keyframe_detokenizer/conditions": ConditionDecoder,
    "video_detokenizer/motion_encoder": MotionConditionEncoder,
    "video_detokenizer/unet": MotionUNet,
    "understanding/visual_tokenizer": VisualTokenizer,
    "understanding/motion_tokenizer": MotionTokenizer,
}
"""Classes of the parts that are this project's own networks."""

DIFFUSERS = {
    "keyframe_detokenizer/unet": "UNet2DConditionModel",
    "keyframe_detokenizer/vae": "AutoencoderKL",
    "video_detokenizer/vae": "AutoencoderKLTemporalDecoder",
}
"""Class names of the parts that are stock networks of `diffusers`."""

SCHEDULERS = ("DDIMScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
"""Schedulers of `diffusers` that a model may have."""


def check_part(part: str) -> None:
    """Raises ModelError unless there is a part of that name."""
    if part not in PARTS:
        raise ModelError(f"a model has no part {part!r}; the parts are {', '.join(PARTS)}")


def build_part(part: str, config: ModelConfig) -> Any:
    """Builds a part with untrained weights, from a seed of its own. The global random state stays as it is."""
    check_part(part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED ^ zlib.crc32(part.encode()))
        return PARTS[part](config)
