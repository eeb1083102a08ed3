"""How things are generated; the defaults are the published ones."""

import hashlib
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from videolavit.models.network import STRICT
from videolavit.models.video_detokenizer import VideoSettings

from .decoding import GREEDY, Sampling

MIN_VISUAL = 20 / 256
"""Fewest visual codes of a picture, as published, relative to its patches."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerateSettings(VideoSettings):
    """How pictures and videos come out of prompts.

    Args:
        temperature: Scores are divided by it; 0 takes the best id always. Motion is greedy, except for the first clip
            of a given picture.
        top_k: Only so many of the best ids; None for all.
        top_p: Only the fewest ids that have this share of the probability together.
        visual_guidance: Guidance of the language model for pictures.
        mixed_guidance: The same where the prompt of a picture has pictures in it.
        motion_guidance: The same for motion.
        min_visual: Fewest visual codes of a picture; None for the published 20 where a picture has 256 patches, and
            in proportion elsewhere.
        max_visual: Most visual codes of a picture; None for as many as it has patches.
        keyframe_steps: Denoising steps of a picture.
        keyframe_guidance: Guidance of the keyframe U-Net.
        constraint: What ties a clip of a long video to the one before: `noise` starts its keyframe from the last
            frame with noise added, as released; `inversion` from the last frame's DDIM inversion, as in the paper;
            `none` from noise.
        constraint_rate: Share of the keyframe's schedule that the constraint skips.
        width: Of pictures and keyframes in pixels; None for the model's own.
        height: Of pictures and keyframes in pixels; None for the model's own.
        video_width: Of videos in pixels; None for the model's own.
        video_height: Of videos in pixels; None for the model's own.
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
        """Fewest and most visual codes of a picture, for a model whose pictures have so many patches.

        Raises:
            ValueError: the settings leave no number.
        """
        most = num_patches if self.max_visual is None else self.max_visual
        fewest = min(most, round(MIN_VISUAL * num_patches)) if self.min_visual is None else self.min_visual
        if not fewest <= most <= num_patches:
            raise ValueError(
                f"min_visual, {fewest}, must be at most max_visual, {most}, and that at most {num_patches}: so many "
                "patches has a picture of this model"
            )
        return max(fewest, 1), most

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def motion_sampling(self, from_picture: bool) -> Sampling:
        """As published: drawn behind a given picture, greedy else."""
        return self.sampling() if from_picture else GREEDY


def generator(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of a request for one purpose: they depend on nothing else, whatever it is batched with."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
