"""Bodies of requests and answers, in the format of the OpenAI API. Unknown fields are refused."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
Size = Annotated[str, Field(pattern=SIZE, examples=["256x256"], description="Width x height, in pixels")]
Stop = Annotated[str, Field(min_length=1, max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of all random numbers of the request")]


class Request(BaseModel):
    """Part of a request body."""

    model_config = ConfigDict(extra="forbid")


# ---- errors ---------------------------------------------------------------------------------------------------------


class ErrorBody(BaseModel):
    """Reason why a request failed."""

    message: str = Field(description="Reason, for people")
    type: str = Field(description="Type of error, as OpenAI names it")
    param: str | None = Field(None, description="Name of the field at fault")
    code: str | None = Field(None, description="Reason, for programs")


class ErrorResponse(BaseModel):
    """Answer to a request that failed."""

    error: ErrorBody


# ---- chat -----------------------------------------------------------------------------------------------------------


class TextPart(Request):
    """Text of a message."""

    type: Literal["text"]
    text: str


class Url(Request):
    """Data URL, or http(s) URL of a host that the service allows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Request):
    """Image that a message is about."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(Request):
    """Video that a message is about, in the format of other open-source servers."""

    type: Literal["video_url"]
    video_url: Url


class FileData(Request):
    """Content of a file."""

    file_data: str = Field(description="Data URL of the file")
    filename: str | None = None


class FilePart(Request):
    """Image or video that a message is about, as a file."""

    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class Message(Request):
    """Message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Request):
    """Options of a streamed answer."""

    include_usage: bool = Field(False, description="Send the number of tokens in a last event")


class ChatRequest(Request):
    """Request for a chat completion."""

    model: str = Field(description="Name of the model")
    messages: list[Message] = Field(
        min_length=1, max_length=200, description="Conversation, whose last message is to be answered"
    )
    min_tokens: int | None = Field(None, ge=0, description="Fewest tokens of the answer; an extension of OpenAI's API")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of the answer")
    max_completion_tokens: int | None = Field(None, ge=1, description="Most tokens of the answer; the newer name")
    temperature: float | None = Field(None, ge=0, le=2, description="Sampling temperature; 0 for greedy decoding")
    top_p: float | None = Field(None, gt=0, le=1, description="Probability mass that tokens are sampled from")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Strings that end the answer, which does not include them"
    )
    seed: Seed | None = None
    stream: bool | None = Field(False, description="Send the answer as server-sent events while it is generated")
    stream_options: StreamOptions | None = Field(None, description="Options of a streamed answer")
    n: Literal[1] | None = Field(1, description="Number of answers")
    user: str | None = Field(None, description="Name of the end user; accepted and ignored")


class Usage(BaseModel):
    """Number of tokens of a chat completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """Message that the model generated."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(BaseModel):
    """Answer of the model."""

    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """Chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


# ---- images ---------------------------------------------------------------------------------------------------------


class ImageRequest(Request):
    """Request to generate images."""

    prompt: str = Field(min_length=1, description="Text to generate images for")
    model: str | None = Field(None, description="Name of the model")
    n: int | None = Field(1, ge=1, description="Number of images; image i has the seed plus i")
    size: Size | Literal["auto"] | None = None
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json", description="Form of the images in the answer: base64, or a data URL"
    )
    seed: Seed | None = None
    user: str | None = Field(None, description="Name of the end user; accepted and ignored")


class GeneratedImage(BaseModel):
    """Generated image, a PNG file."""

    b64_json: str | None = Field(default=None, description="File in base64")
    url: str | None = Field(default=None, description="Data URL of the file")
    revised_prompt: str | None = None


class ImageResponse(BaseModel):
    """Generated images."""

    created: int
    data: list[GeneratedImage]


# ---- videos ---------------------------------------------------------------------------------------------------------


class ReferenceUrl(Request):
    """Image that a video starts from."""

    image_url: str = Field(description="Data URL, or http(s) URL of a host that the service allows")


class VideoRequest(Request):
    """Request to generate a video."""

    prompt: str = Field("", description="Text to generate a video for")
    model: str | None = Field(None, description="Name of the model")
    seconds: float = Field(4.0, gt=0, allow_inf_nan=False, description="Length of the video, in seconds")
    size: Size | None = None
    seed: Seed | None = None
    input_reference: ReferenceUrl | None = Field(None, description="Picture that the video starts from")


class VideoError(BaseModel):
    """Reason why a video job failed."""

    code: str
    message: str


class VideoJob(BaseModel):
    """Video job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="Share of the work that is done, in percent")
    created_at: int = Field(description="Time of the request, in seconds since 1970")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="Time when the result is deleted, in seconds since 1970")
    prompt: str | None = None
    seconds: str = Field(description="Length of the video, in seconds")
    size: str
    seed: int
    remixed_from_video_id: str | None = None
    error: VideoError | None = None
    tokens: dict[str, int] | None = Field(None, description="Number of visual and motion tokens of the video")


class VideoList(BaseModel):
    """Page of video jobs."""

    object: Literal["list"] = "list"
    data: list[VideoJob]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class Deleted(BaseModel):
    """Deleted video job."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


# ---- the service ----------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """Served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videolavit"


class ModelList(BaseModel):
    """Served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """State of the service and of its deployments."""

    status: Literal["ok", "not ready"]
    deployments: dict[str, str] = Field(default_factory=dict)


def chunk(request_id: str, model: str, created: int, **choice: Any) -> dict[str, Any]:
    """Event of a streamed chat completion; the event with `usage` has no choice."""
    usage = choice.pop("usage", None)
    event = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
    if usage is not None:
        return event | {"choices": [], "usage": usage}
    return event | {"choices": [{"index": 0, "logprobs": None, "finish_reason": None} | choice]}


def now() -> int:
    """Current time, in seconds since 1970."""
    return int(time.time())
