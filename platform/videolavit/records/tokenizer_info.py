"""Settings of tokenization and properties of the tokenizers, for drivers and decoding actors, without torch."""

import os
from dataclasses import dataclass
from typing import Literal

TOKENIZER_PARTS = ("visual_tokenizer", "motion_tokenizer")
CLIPS_ON_GPU, CLIPS_ON_CPU = 32, 1
"""Pictures or motions that are encoded at once. A core gains nothing from more."""


@dataclass(frozen=True)
class TokenizerInfo:
    """Properties of a model's tokenizers.

    Attributes:
        digests: SHA-256 of each part.
        num_codes: Size of each part's codebook.
        picture_size: Side of a picture, in pixels.
        motion_size: Height and width of a motion grid, in blocks.
        codes_a_picture: Largest number of codes of a picture.
    """

    digests: dict[str, str]
    num_codes: dict[str, int]
    picture_size: int
    motion_size: tuple[int, int]
    codes_a_picture: int

    def metadata(self) -> dict[str, str]:
        """Returns the Parquet metadata of shards that these tokenizers encoded."""
        codes = {f"videolavit.{kind}_codes": str(number) for kind, number in self.num_codes.items()}
        return codes | {f"videolavit.{part}": digest for part, digest in self.digests.items()}


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Settings of the encoding of prepared shards.

    Args:
        model: Model folder, on a path that all nodes share, or the name of a preset (untrained weights).
        dtype: Data type of the computation.
        token_budget: Codes that a batch may give, over all samples of a shard, 256 for a picture or the motion of a
            clip; by default 32 clips on a GPU and one on the CPU. Lower it if the device's memory does not suffice.
            It belongs to the run's identity, since rounding may depend on it.
    """

    model: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    token_budget: int | None = None

    def __post_init__(self) -> None:
        if os.path.isdir(self.model):  # workers have other working folders
            object.__setattr__(self, "model", os.path.abspath(self.model))
        if self.token_budget is not None and self.token_budget < 1:
            raise ValueError(f"token_budget must be at least 1, not {self.token_budget}")

    def batch(self, tokenizers: TokenizerInfo, device: str) -> int:
        """Pictures or motions of a batch on `cuda` or `cpu`."""
        if self.token_budget is None:
            return CLIPS_ON_CPU if device == "cpu" else CLIPS_ON_GPU
        return max(self.token_budget // tokenizers.codes_a_picture, 1)
