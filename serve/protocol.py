"""What goes over the wire, as OpenAI's clients know it. Unknown fields are refused."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
Size = Annotated[str, Field(pattern=SIZE, examples=["256x256"])]
Stop = Annotated[str, Field(min_length=1, max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Request(BaseModel):
    """A body of a client."""

    model_config = ConfigDict(extra="forbid")


# ---- errors ---------------------------------------------------------------------------------------------------------


class ErrorBody(BaseModel):
    """Why a request was not done."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorBody


# ---- chat -----------------------------------------------------------------------------------------------------------


class TextPart(Request):
    """A text."""

    type: Literal["text"]
    text: str


class Url(Request):
    """A data URL; or an http(s) URL of a host that the service allows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Request):
    """A picture."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(Request):
    """A video, in the shape that other open servers use."""

    type: Literal["video_url"]
    video_url: Url


class FileData(Request):
    """A file as a data URL."""

    file_data: str
    filename: str | None = None


class FilePart(Request):
    """A picture or a video as a file."""

    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class Message(Request):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Request):
    """What comes with a stream."""

    include_usage: bool = False


class ChatRequest(Request):
    """`POST /v1/chat/completions`. `min_tokens` is no field of OpenAI's, but of other servers of their API."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=200)
    min_tokens: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Seed | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    user: str | None = None


class Usage(BaseModel):
    """Tokens of a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class Choice(BaseModel):
    """An answer."""

    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


# ---- images ---------------------------------------------------------------------------------------------------------


class ImageRequest(Request):
    """`POST /v1/images/generations`."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int | None = Field(1, ge=1)
    size: Size | Literal["auto"] | None = None
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    seed: Seed | None = None
    user: str | None = None


class Image(BaseModel):
    """A picture: PNG in base64, or a data URL of it."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class ImageResponse(BaseModel):
    """Pictures of a prompt."""

    created: int
    data: list[Image]


# ---- videos ---------------------------------------------------------------------------------------------------------


class ReferenceUrl(Request):
    """A picture that a video starts from."""

    image_url: str


class VideoRequest(Request):
    """`POST /v1/videos`, as JSON or as a form."""

    prompt: str = ""
    model: str | None = None
    seconds: float = Field(4.0, gt=0, allow_inf_nan=False)
    size: Size | None = None
    seed: Seed | None = None
    input_reference: ReferenceUrl | None = None


class VideoError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class Video(BaseModel):
    """A video job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str | None = None
    seconds: str
    size: str
    seed: int
    remixed_from_video_id: str | None = None
    error: VideoError | None = None
    tokens: dict[str, int] | None = Field(None, description="codes that it came through, by kind")


class VideoList(BaseModel):
    """Jobs of a key, a page of them."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class Deleted(BaseModel):
    """A job that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


# ---- the service ----------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """What can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videolavit"


class ModelList(BaseModel):
    """All that can be asked."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the service is up, and what is not."""

    status: Literal["ok", "not ready"]
    deployments: dict[str, str] = Field(default_factory=dict)


def chunk(request_id: str, model: str, created: int, **choice: Any) -> dict[str, Any]:
    """A piece of a streamed answer; with `usage` and no choice, its last."""
    usage = choice.pop("usage", None)
    told = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
    if usage is not None:
        return told | {"choices": [], "usage": usage}
    return told | {"choices": [{"index": 0, "logprobs": None, "finish_reason": None} | choice]}


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
