"""Requests to the deployments and their results.

Images, features and files are passed as references into Ray's object store. The ingress owns the objects, so that they
outlive the replicas that use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from videolavit.generation.describe import DescribeSettings
from videolavit.generation.program import ClipCodes, ClipRequest, KeyframeRequest
from videolavit.generation.prompts import Picture
from videolavit.generation.settings import GenerateSettings

if TYPE_CHECKING:
    from ray import ObjectRef

StepRequest = TypeVar("StepRequest", KeyframeRequest, ClipRequest)


@dataclass(frozen=True)
class Upload:
    """File from a client.

    Args:
        data: Reference to the bytes of the file.
        kind: Kind of media that the file is decoded as.
        owner: Owner of the API key of the client; empty for video jobs.
    """

    data: ObjectRef[bytes]
    kind: Literal["image", "video"]
    owner: str = ""


@dataclass(frozen=True)
class FrameFiles:
    """Video from a client as one image file for each frame.

    Args:
        files: Reference to the bytes of the files.
        fps: Images per second.
        owner: Owner of the API key of the client.
    """

    files: ObjectRef[list[bytes]]
    fps: float
    owner: str


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
        codes: Codes of the keyframe and of the motion.
        num_frames: Number of frames, without padding.
        height: Height of the uploaded video, in pixels.
        width: Width of the uploaded video, in pixels.
    """

    codes: ClipCodes
    num_frames: int
    height: int
    width: int


EncodedContent = Sequence["str | ObjectRef[object]"]


@dataclass(frozen=True)
class AnswerRequest:
    """Request to answer the last question of a chat.

    Args:
        turns: Earlier messages and their answers. Messages are texts, and references to a
            `generation.describe.VisualContext` for each picture and video, in order.
        question: Message to answer.
        settings: Sampling settings.
        stream: Yield text while the answer is generated.
        owner: Owner of the API key, within whose chats the prefix cache is shared.
        stops: Strings that end the answer, besides the model's own end token.
    """

    turns: Sequence[tuple[EncodedContent, str]]
    question: EncodedContent
    settings: DescribeSettings
    stream: bool
    owner: str = ""
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class TokenTimes:
    """Times of the tokens of an answer.

    Args:
        first: Time from the arrival at the language model to the first token, in seconds.
        each: Mean time between two tokens, in seconds; None for a single token.
    """

    first: float
    each: float | None


@dataclass(frozen=True)
class Answer:
    """Answer, or the next part of a streamed one.

    Args:
        text: Text since the part before.
        prompt_tokens: Number of tokens in the prompt.
        cached_tokens: Number of tokens in the prompt that were in the prefix cache.
        tokens: Number of tokens generated so far.
        finished: Reason for the end, in the last part: `stop` or `length`.
        times: Times of the tokens, in the last part; None without a token.
    """

    text: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    finished: Literal["stop", "length"] | None = None
    times: TokenTimes | None = None


@dataclass(frozen=True)
class PixelsRequest(Generic[StepRequest]):
    """Request to a detokenizer for the result of a step.

    Args:
        step: Reference to the request of the step.
        settings: Sampler settings, with the sizes.
    """

    step: ObjectRef[StepRequest]
    settings: GenerateSettings
