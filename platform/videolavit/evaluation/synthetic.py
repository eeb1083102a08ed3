"""Evaluation of a model on held-out synthetic videos: generation, reconstruction and understanding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from videolavit.generation.describe import Question, answer
from videolavit.generation.detokenize import generate_keyframes
from videolavit.generation.generate import generate_videos
from videolavit.generation.program import KeyframeRequest
from videolavit.generation.prompts import Picture, Prompt, encode_pictures
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.media import CLIP_FRAMES, DecomposeSettings, decompose
from videolavit.progress import OnProgress, Progress, ignore_progress

from .colour import shape_colour
from .motion import motion_agreement, shape_direction
from .questions import DIRECTION_QUESTION, direction_in_answer
from .shape import ShapeClassifier

BATCH_SIZE = 20
"""Videos or pictures of a batch."""


@dataclass(frozen=True, eq=False)
class EvaluatedVideo:
    """Video that was generated from a caption, with what was measured in it.

    Args:
        row: Row of the corpus's manifest, with the caption and its only shape.
        frames: uint8 [time, height, width, 3].
        direction: Measured direction in the first clip; None if the shape is still.
        colours: Measured colour in each clip.
        shapes: Measured form in each clip.
        agreement: Share of the moving blocks of the first clip's motion tokens that move the same way in its frames.
    """

    row: dict[str, Any]
    frames: Picture
    direction: str | None
    colours: Sequence[str]
    shapes: Sequence[str]
    agreement: float

    @property
    def truth(self) -> dict[str, Any]:
        """The shape of the caption."""
        shape: dict[str, Any] = self.row["shapes"][0]
        return shape

    @property
    def direction_is_right(self) -> bool:
        return bool(self.direction == self.truth["direction"])

    @property
    def colour_is_right(self) -> bool:
        return bool(self.colours[0] == self.truth["colour"])

    @property
    def shape_is_right(self) -> bool:
        return bool(self.shapes[0] == self.truth["shape"])

    @property
    def colour_and_shape_stay(self) -> bool:
        """True if every clip has the colour and the form of the first."""
        return len({*zip(self.colours, self.shapes, strict=True)}) == 1


def evaluate_generation(
    runtime: Runtime,
    rows: Sequence[dict[str, Any]],
    classifier: ShapeClassifier,
    settings: GenerateSettings,
    *,
    clips: int = 1,
    seed: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> list[EvaluatedVideo]:
    """Generates a video from the caption of each row of a manifest, and measures what it shows.

    Args:
        rows: Rows of videos with one shape.
        classifier: Classifier of forms, trained at the size of the generated videos.
        settings: Settings of generation.
        clips: Clips of each video.
        seed: Seed of the first video; each later one has the next.
    """
    videos: list[EvaluatedVideo] = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        prompts = [Prompt((row["text"],), number) for number, row in enumerate(batch, seed + start)]
        made = generate_videos(runtime, prompts, clips, settings, on_progress)
        motions = decode_motion(runtime, [video.motion[0] for video in made])
        for row, video, motion in zip(batch, made, motions, strict=True):
            # the first frame of a later clip, which repeats the last one before it, is left out
            parts = np.split(video.frames, [CLIP_FRAMES + number * (CLIP_FRAMES - 1) for number in range(clips - 1)])
            videos.append(
                EvaluatedVideo(
                    row,
                    video.frames,
                    shape_direction(parts[0], settings.fps),
                    [shape_colour(part) for part in parts],
                    [classifier.shape(part) for part in parts],
                    motion_agreement(parts[0], motion, settings.fps),
                )
            )
        on_progress(Progress("generate", len(videos), len(rows)))
    return videos


@torch.inference_mode()
def decode_motion(runtime: Runtime, codes: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Decodes motion codes to motion at the tokenizer's scale, float32 [clips, 2, 24, height, width]."""
    with runtime.use("motion_tokenizer") as tokenizer:
        decoded = tokenizer.decode(torch.tensor(codes, device=runtime.device))
    return np.asarray(decoded.float().cpu())


def reconstruct_keyframes(runtime: Runtime, pictures: Sequence[Picture], settings: GenerateSettings) -> list[Picture]:
    """Encodes pictures to visual codes and reconstructs them, at their own size."""
    height, width = pictures[0].shape[:2]
    settings = replace(settings, height=height, width=width)
    result: list[Picture] = []
    for start in range(0, len(pictures), BATCH_SIZE):
        batch = pictures[start : start + BATCH_SIZE]
        with runtime.use("visual_tokenizer") as tokenizer:
            codes = encode_pictures(batch, tokenizer)
        requests = [KeyframeRequest(one, seed) for seed, one in enumerate(codes, start)]
        result.extend(generate_keyframes(runtime, requests, settings))
    return result


@torch.inference_mode()
def reconstruct_motion(runtime: Runtime, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Encodes motion features [clips, 2, 24, height, width] to motion codes and reconstructs them."""
    with runtime.use("motion_tokenizer") as tokenizer:
        parts = [
            tokenizer.decode(tokenizer.encode(torch.from_numpy(some).to(runtime.device, runtime.dtype)))
            for some in np.array_split(features, -(-len(features) // BATCH_SIZE))
        ]
        return np.concatenate([part.float().cpu().numpy() for part in parts])


def ask_directions(runtime: Runtime, videos: Sequence[str]) -> list[str | None]:
    """Asks the model for the direction of the shape in each video file; None where the answer names no direction."""
    directions: list[str | None] = []
    for start in range(0, len(videos), BATCH_SIZE):
        clips = [list(decompose(file, DecomposeSettings(policy="eval"))) for file in videos[start : start + BATCH_SIZE]]
        answers = answer(runtime, [Question((about, DIRECTION_QUESTION)) for about in clips])
        directions += [direction_in_answer(text) for text in answers]
    return directions
