"""What a model makes of synthetic videos, measured against what is true of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from videolavit.generation.describe import Question, answer
from videolavit.generation.generate import generate_videos
from videolavit.generation.prompts import Picture, Prompt, encode_pictures
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, generator
from videolavit.media import DecomposeSettings, decompose

from .colour import colour
from .motion import direction
from .questions import DIRECTION, direction_in

BATCH = 20
"""Videos or pictures that are made at once."""


@dataclass(frozen=True, eq=False)
class MadeVideo:
    """A video that was generated for a caption, and what is seen in it.

    Args:
        row: Of the corpus's manifest: the caption and the one shape that it tells of.
        frames: uint8 [time, height, width, 3].
    """

    row: dict[str, Any]
    frames: Picture
    direction: str | None
    colour: str

    @property
    def truth(self) -> dict[str, Any]:
        shape: dict[str, Any] = self.row["shapes"][0]
        return shape

    @property
    def right_direction(self) -> bool:
        return bool(self.direction == self.truth["direction"])

    @property
    def right_colour(self) -> bool:
        return bool(self.colour == self.truth["colour"])


def generated(
    runtime: Runtime, rows: Sequence[dict[str, Any]], settings: GenerateSettings, tell: Callable[[int], None]
) -> list[MadeVideo]:
    """A video for the caption of each row of a manifest, measured.

    Args:
        rows: Of videos with one shape.
        tell: Called with how many are done.
    """
    made: list[MadeVideo] = []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        prompts = [Prompt((row["text"],), seed) for seed, row in enumerate(some, start)]
        for row, video in zip(some, generate_videos(runtime, prompts, 1, settings), strict=True):
            seen = direction(video.frames, settings.fps), colour(video.frames)
            made.append(MadeVideo(row, video.frames, *seen))
        tell(len(made))
    return made


def repainted(runtime: Runtime, pictures: Sequence[Picture], settings: GenerateSettings) -> list[Picture]:
    """Pictures through their codes and back, at their own size."""
    size = pictures[0].shape[:2]
    steps, guidance = settings.keyframe_steps, settings.keyframe_guidance
    result: list[Picture] = []
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        with runtime.use("visual_tokenizer") as tokenizer:
            codes = encode_pictures(some, tokenizer)
        generators = [generator(number, "keyframe 0") for number in range(start, start + len(some))]
        ids = [torch.tensor(one, dtype=torch.int64) for one in codes]
        with runtime.use("keyframe_detokenizer") as detokenizer:
            result += list(detokenizer.paint(ids, size, steps, guidance, generators))
    return result


@torch.inference_mode()
def motion_through_codes(runtime: Runtime, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Motion as the motion tokenizer reads it, [clips, 2, 24, height, width], through its codes and back."""
    with runtime.use("motion_tokenizer") as tokenizer:
        parts = [
            tokenizer.decode(tokenizer.encode(torch.from_numpy(some).to(runtime.device, runtime.dtype)))
            for some in np.array_split(features, -(-len(features) // BATCH))
        ]
        return np.concatenate([part.float().cpu().numpy() for part in parts])


def told_directions(runtime: Runtime, videos: Sequence[str]) -> list[str | None]:
    """The direction that the model tells of each video file; None where it names none."""
    told: list[str | None] = []
    for start in range(0, len(videos), BATCH):
        clips = [list(decompose(file, DecomposeSettings(policy="eval"))) for file in videos[start : start + BATCH]]
        answers = answer(runtime, [Question(DIRECTION, about) for about in clips])
        told += [direction_in(text) for text in answers]
    return told
