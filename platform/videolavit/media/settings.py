"""Settings of the decomposition. Each of them changes the output, and so is part of a run's identity."""

from dataclasses import dataclass
from typing import Literal

CLIP_FRAMES = 24
"""Frames per clip: two groups of pictures, 4 s at 6 fps (paper, section 3.1)."""

GOP_FRAMES = 12
"""Distance between the encoder's regular I frames, in frames."""

BLOCK = 16
"""Side of the block that one motion vector belongs to, in pixels."""


@dataclass(frozen=True, kw_only=True)
class DecomposeSettings:
    """Settings of the decomposition of a video into clips. The defaults are the published model's.

    Args:
        fps: Frames per second after resampling.
        bit_rate: Bit rate of the MPEG-4 re-encoding, in bits per second.
        policy: `corpus` puts every frame into exactly one clip (for training data); `eval` selects clips as the
            published model does for understanding.
        max_clips: Largest number of clips that the `eval` policy selects.
        max_width: Largest frame width, in pixels; a video that declares more is rejected before it is decoded.
        max_height: Largest frame height, in pixels; a video that declares more is rejected before it is decoded.
    """

    fps: int = 6
    bit_rate: int = 8_000_000
    policy: Literal["corpus", "eval"] = "corpus"
    max_clips: int = 16
    max_width: int = 8192
    max_height: int = 8192

    def __post_init__(self) -> None:
        for name in ("fps", "bit_rate", "max_clips", "max_width", "max_height"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.policy not in ("corpus", "eval"):
            raise ValueError(f"policy must be 'corpus' or 'eval', not {self.policy!r}")
