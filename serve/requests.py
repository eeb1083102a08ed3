"""Requests to the deployments and their results.

Images, features and files are passed as references into Ray's object store. The ingress owns the objects, so that they
outlive the replicas that use them.
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
    """File from a client.

    Args:
        data: Reference to the bytes of the file.
        kind: Kind of media that the file is decoded as.
    """

    data: ObjectRef[bytes]
    kind: Literal["image", "video"]


@dataclass(frozen=True)
class EncodedPicture:
    """Image with its codes.

    Args:
        picture: uint8 [height, width, 3].
        codes: Visual codes.
    """

    picture: Picture
    codes: list[int]


@dataclass(frozen=True)
class EncodedClip:
    """Codes and dimensions of a clip of an uploaded video.

    Args:
        visual: Visual codes of the keyframe.
        motion: Motion codes.
        num_frames: Number of frames, without padding.
        height: Height of the uploaded video, in pixels.
        width: Width of the uploaded video, in pixels.
    """

    visual: list[int]
    motion: list[int]
    num_frames: int
    height: int
    width: int


@dataclass(frozen=True)
class AnswerRequest:
    """Request to answer the last question of a chat.

    Args:
        turns: Earlier questions and answers.
        question: Question to answer.
        context: Reference to the `generation.describe.VisualContext` that the chat is about; None for text alone.
        settings: Sampling settings.
        stream: Yield text while the answer is generated.
        owner: Owner of the API key, within whose chats the prefix cache is shared.
        stops: Strings that end the answer, besides the model's own end token.
    """

    turns: Sequence[tuple[str, str]]
    question: str
    context: ObjectRef[object] | None
    settings: DescribeSettings
    stream: bool
    owner: str = ""
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    """Answer, or the next part of a streamed one.

    Args:
        text: Text since the part before.
        prompt_tokens: Number of tokens in the prompt.
        tokens: Number of tokens generated so far.
        finished: Reason for the end, in the last part: `stop` or `length`.
    """

    text: str
    prompt_tokens: int
    tokens: int
    finished: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class TokensRequest:
    """Request to generate the codes of an image or of a video after a prompt.

    Args:
        parts: Texts, and visual codes of images.
        seed: Seed of the request.
        clips: Number of clips; 0 for a single image.
        first_given: The last image of the prompt is the keyframe of the first clip.
        settings: Sampling settings.
    """

    parts: Sequence[str | list[int]]
    seed: int
    clips: int
    first_given: bool
    settings: GenerateSettings


@dataclass(frozen=True)
class ClipTokens:
    """Generated codes of a clip, or of a single image.

    Args:
        visual: Codes of the keyframe; None where the request gave the keyframe.
        motion: Codes of the motion; None for a single image.
    """

    visual: list[int] | None
    motion: list[int] | None


@dataclass(frozen=True)
class RemoteKeyframeRequest:
    """Request to generate a keyframe from its codes.

    Args:
        codes: Visual codes.
        seed: Seed of the request.
        clip: Index of the clip.
        previous: Reference to the last frame of the clip before, uint8 [height, width, 3]; None to start from noise.
        size: Height and width, in pixels.
        settings: Sampler settings.
    """

    codes: Sequence[int]
    seed: int
    clip: int
    previous: ObjectRef[object] | None
    size: tuple[int, int]
    settings: GenerateSettings


@dataclass(frozen=True)
class RemoteClipRequest:
    """Request to generate the frames of a clip from its keyframe and motion.

    Args:
        keyframe: Reference to uint8 [height, width, 3], of any size.
        motion: Motion codes.
        seed: Seed of the request.
        clip: Index of the clip.
        size: Height and width, in pixels.
        settings: Sampler settings.
    """

    keyframe: ObjectRef[object]
    motion: Sequence[int]
    seed: int
    clip: int
    size: tuple[int, int]
    settings: GenerateSettings
