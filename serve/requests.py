"""What deployments are told. Pictures, features and files travel as references into shared memory, the rest is small.

The references are the ingress's, so that they outlive the replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from videolavit.generation.describe import DescribeSettings
from videolavit.generation.prompts import Picture
from videolavit.generation.settings import GenerateSettings

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(frozen=True)
class Upload:
    """A file from a client.

    Args:
        data: Reference to its bytes.
        kind: What it is taken for.
    """

    data: ObjectRef[bytes]
    kind: Literal["image", "video"]


@dataclass(frozen=True)
class EncodedPicture:
    """A picture and its codes.

    Args:
        picture: uint8 [height, width, 3].
        codes: Visual codes.
    """

    picture: Picture
    codes: list[int]


@dataclass(frozen=True)
class EncodedClip:
    """A clip's codes, and how it was.

    Args:
        visual: Codes of the keyframe.
        motion: Codes of the motion.
        num_frames: Real frames.
        height: In pixels, as uploaded.
        width: In pixels, as uploaded.
    """

    visual: list[int]
    motion: list[int]
    num_frames: int
    height: int
    width: int


@dataclass(frozen=True)
class AnswerRequest:
    """A question, what was said before, and what it is about.

    Args:
        turns: Questions and answers before it.
        question: To be answered.
        sight: Reference to a `generation.describe.Sight`.
        settings: How the answer is written.
        in_pieces: Whether its text is wanted as it comes.
        owner: Whose question it is.
        stops: Strings that end the answer, besides the model's own.
    """

    turns: Sequence[tuple[str, str]]
    question: str
    sight: ObjectRef[object] | None
    settings: DescribeSettings
    in_pieces: bool
    owner: str = ""
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """A piece of an answer.

    Args:
        text: What is new.
        prompt_tokens: Of the prompt.
        tokens: ClipTokens so far.
        finished: `stop` or `length` at the end.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finished: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class TokensRequest:
    """Codes that are to be written behind a prompt.

    Args:
        parts: Texts, and codes of pictures.
        seed: Of the request.
        clips: Pictures with motion; 0 for one picture alone.
        first_given: Whether the last picture of the prompt is the first clip's.
        settings: How they are chosen.
    """

    parts: Sequence[str | list[int]]
    seed: int
    clips: int
    first_given: bool
    settings: GenerateSettings


@dataclass(frozen=True)
class ClipTokens:
    """What was written for a clip.

    Args:
        visual: Codes of its picture; None where that was given.
        motion: Codes of its motion; None for a picture alone.
    """

    visual: list[int] | None
    motion: list[int] | None


@dataclass(frozen=True)
class PaintRequest:
    """A keyframe.

    Args:
        codes: Its visual codes.
        seed: Of the request.
        clip: Its clip's number.
        last: Reference to the last frame of the clip before.
        size: Height and width in pixels.
        settings: Of the sampler.
    """

    codes: Sequence[int]
    seed: int
    clip: int
    last: ObjectRef[object] | None
    size: tuple[int, int]
    settings: GenerateSettings


@dataclass(frozen=True)
class AnimateRequest:
    """A clip's frames.

    Args:
        keyframe: Reference to uint8 [height, width, 3], of any size.
        motion: Codes of its motion.
        seed: Of the request.
        clip: Its number.
        size: Height and width in pixels.
        settings: Of the sampler.
    """

    keyframe: ObjectRef[object]
    motion: Sequence[int]
    seed: int
    clip: int
    size: tuple[int, int]
    settings: GenerateSettings
