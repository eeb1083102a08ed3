"""Settings of generation; the defaults are those of the published model."""

import hashlib
from dataclasses import asdict, fields
from typing import Any, Literal, TypeVar

import torch
from pydantic.dataclasses import dataclass

from videolavit.models.folder import ModelFolder
from videolavit.models.network import STRICT, ModelError, parse_config
from videolavit.models.video_detokenizer import VideoSettings

from .decoding import GREEDY, Sampling

S = TypeVar("S", bound=VideoSettings)

MIN_VISUAL_SHARE = 20 / 256
"""Published smallest number of visual codes of a picture, as a share of its patches."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerateSettings(VideoSettings):
    """Settings for generating pictures and videos from prompts.

    Args:
        temperature: Divisor of the language model's logits; 0 for greedy decoding. Motion is always decoded greedily,
            except for the clip that starts from a given picture.
        top_k: Number of most probable ids to sample from; None for all.
        top_p: Share of the probability that the sampled ids must cover (nucleus sampling); 1 for all.
        visual_guidance: Guidance scale of the language model for the codes of a picture.
        mixed_guidance: Guidance scale for the codes of a picture whose prompt contains pictures.
        motion_guidance: Guidance scale for motion codes.
        min_visual: Smallest number of visual codes of a picture; None for the published 20 of 256 patches, in
            proportion to the model's number of patches.
        max_visual: Largest number of visual codes of a picture; None for the number of its patches.
        keyframe_steps: Denoising steps of a picture.
        keyframe_guidance: Guidance scale of the keyframe U-Net.
        constraint: Link between a clip of a long video and the clip before it: `noise` starts the keyframe from the
            last frame with noise added, as the released code does; `inversion` from the DDIM inversion of the last
            frame, as the paper does; `none` from noise alone.
        constraint_rate: Share of the keyframe's denoising schedule that the constraint skips, between 0 and 1.
        width: Width of pictures and keyframes, in pixels; None for the model's own.
        height: Height of pictures and keyframes, in pixels; None for the model's own.
        video_width: Width of videos, in pixels; None for the model's own.
        video_height: Height of videos, in pixels; None for the model's own.
    """

    temperature: float = 1.0
    top_k: int | None = 200
    top_p: float = 1.0
    visual_guidance: float = 4.0
    mixed_guidance: float = 5.0
    motion_guidance: float = 7.0
    min_visual: int | None = None
    max_visual: int | None = None
    keyframe_steps: int = 50
    keyframe_guidance: float = 3.0
    constraint: Literal["noise", "inversion", "none"] = "noise"
    constraint_rate: float = 0.85
    width: int | None = None
    height: int | None = None
    video_width: int | None = None
    video_height: int | None = None

    def __post_init__(self) -> None:
        for name in ("keyframe_steps", "video_steps", "fps", "decode_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("min_visual", "max_visual", "width", "height", "video_width", "video_height"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.constraint_rate < 1:
            raise ValueError(f"constraint_rate must be between 0 and 1, not {self.constraint_rate:g}")
        self.sampling()

    def visual_limits(self, num_patches: int) -> tuple[int, int]:
        """Smallest and largest number of visual codes of a picture.

        Args:
            num_patches: Patches of a picture of the model.

        Raises:
            ValueError: the settings leave no possible number.
        """
        most = num_patches if self.max_visual is None else self.max_visual
        fewest = min(most, round(MIN_VISUAL_SHARE * num_patches)) if self.min_visual is None else self.min_visual
        if not fewest <= most <= num_patches:
            raise ValueError(
                f"min_visual, {fewest}, must be at most max_visual, {most}, which must be at most {num_patches}, the "
                "number of patches of a picture of this model"
            )
        return max(fewest, 1), most

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def motion_sampling(self, from_picture: bool) -> Sampling:
        """Sampling of motion codes: greedy, except after a given picture, as published."""
        return self.sampling() if from_picture else GREEDY


def settings_of_model(model: ModelFolder, kind: type[S]) -> S:
    """Settings that suit a model, where none are given: those that its `model.json` names, else the published ones.

    Args:
        kind: `GenerateSettings`, or settings that share names with it.

    Raises:
        ModelError: `model.json` names a setting that does not exist, or with a wrong value.
    """
    return parse_config(kind, generation_defaults(model, kind), f"generation of {model.location}")


def generation_defaults(model: ModelFolder, kind: type[VideoSettings]) -> dict[str, Any]:
    """Values that a model's `model.json` names for these settings. Raises ModelError for unknown names."""
    unknown = model.facts.generation.keys() - {field.name for field in fields(GenerateSettings)}
    if unknown:
        raise ModelError(f"{model.location} names unknown settings of generation: {', '.join(sorted(unknown))}")
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in model.facts.generation.items() if name in names}


def differing_settings(settings: GenerateSettings) -> dict[str, Any]:
    """Settings that differ from the published ones, as `model.json` has them."""
    published = asdict(GenerateSettings())
    return {name: value for name, value in asdict(settings).items() if value != published[name]}


def generator(seed: int, purpose: str) -> torch.Generator:
    """Random generator of a request for one purpose. It depends on nothing else, so batching changes no result."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
