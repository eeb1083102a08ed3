"""Bodies of requests for chats and their answers."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from .base import NeutralValues, Request

Stop = Annotated[str, Field(min_length=1, max_length=100)]
ChatSeed = Annotated[
    int, Field(ge=-(2**63), lt=2**63, description="Seed of the sampling; one is drawn where none is given")
]
CLIENT_NOTES = ("cache_control", "prompt_cache_breakpoint", "uuid")
"""Notes for caches that clients add to parts of messages."""

PIXEL_HINTS = ("min_pixels", "max_pixels", "total_pixels")
"""Hints for the size of pictures, which are resized to that of the model."""


# ---- messages ------------------------------------------------------------------------------------------------------


class TextPart(Request):
    """Text of a message."""

    ignored = CLIENT_NOTES

    type: Literal["text"]
    text: str


class RefusalPart(Request):
    """Text with which an assistant refused to answer."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Request):
    """Address of an image."""

    ignored = ("detail", *PIXEL_HINTS)

    url: str = Field(description="Data URL, or http(s) URL of a host that the service allows")


class ImagePart(Request):
    """Image of a message."""

    ignored = (*CLIENT_NOTES, *PIXEL_HINTS)

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoHints(Request):
    """Hints of a client for the frames of a video."""

    ignored: ClassVar[tuple[str, ...]] = ("fps", "min_frames", *PIXEL_HINTS)

    max_frames: int | None = Field(
        None, ge=1, description="Most frames that are read, in clips of 24; at least one clip is read"
    )


class VideoUrl(VideoHints):
    """Address of a video, and hints for its frames."""

    url: str = Field(description="Data URL, or http(s) URL of a host that the service allows")


class VideoPart(VideoHints):
    """Video of a message, in the format of other open-source servers; the hints may stand in either object."""

    ignored = (*CLIENT_NOTES, *VideoHints.ignored)

    type: Literal["video_url"]
    video_url: VideoUrl


class FileData(Request):
    """Content of a file."""

    neutral: ClassVar[NeutralValues] = {"file_id": ()}

    file_data: str = Field(description="Data URL of the file")
    filename: str | None = None


class FilePart(Request):
    """Image or video of a message, as a file."""

    ignored = CLIENT_NOTES

    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


def _as_parts(content: object) -> object:
    """Content of a message as a list of parts."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("must be a text, or a list of parts")
    return content


Parts = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class Message(Request):
    """Message of a chat; an assistant's may be one that a client got from this or another service."""

    ignored = ("name", "annotations", "reasoning", "reasoning_content", "reasoning_details")
    neutral: ClassVar[NeutralValues] = {"audio": (), "function_call": (), "tool_call_id": (), "tool_calls": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _check_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError("needs content: a text, or a list of parts")
        return self


# ---- requests ------------------------------------------------------------------------------------------------------


class AllVideoHints(Request):
    """Hints of a client for the frames of all videos, in vLLM's words."""

    ignored = ("fps",)

    num_frames: int | None = Field(None, ge=-1, description="Most frames that are read of a video; -1 for all")


class MediaHints(Request):
    """Hints of a client for reading media."""

    ignored = ("image",)

    video: AllVideoHints | None = None


class StreamOptions(Request):
    """Options of a streamed answer."""

    ignored = ("include_obfuscation",)
    neutral: ClassVar[NeutralValues] = {"continuous_usage_stats": (False,)}

    include_usage: bool | None = Field(False, description="Send the number of tokens in a last event")


def _as_stops(stop: object) -> object:
    """List of stop strings."""
    if isinstance(stop, str):
        return [stop]
    if not isinstance(stop, list):
        raise ValueError("must be a text, or a list of up to 4")
    return stop


class ChatRequest(Request):
    """Request for a chat completion."""

    ignored = (
        "metadata",
        "mm_processor_kwargs",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "tools",  # an offer: a model may always answer in words, unless `tool_choice` asks for a call
        "user",
    )
    neutral: ClassVar[NeutralValues] = {
        "audio": (),
        "chat_template_kwargs": ({}, {"enable_thinking": False}),
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "presence_penalty": (0,),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    model: str = Field(description="Name of the model")
    messages: list[Message] = Field(
        min_length=1, max_length=200, description="Conversation, whose last message is to be answered"
    )
    min_tokens: int | None = Field(None, ge=0, description="Fewest tokens of the answer; an extension of OpenAI's API")
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens of the answer; what is left of the context where it is not given"
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="Most tokens of the answer; the newer name")
    temperature: float | None = Field(1, ge=0, le=2, description="Sampling temperature; 0 for greedy decoding")
    top_p: float | None = Field(1, gt=0, le=1, description="Probability mass that tokens are sampled from")
    stop: (
        Annotated[
            list[Stop],
            Field(max_length=4),
            BeforeValidator(_as_stops, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=4)]),
        ]
        | None
    ) = Field(None, description="Strings that end the answer, which does not include them")
    seed: ChatSeed | None = None
    images_as_video_fps: float | None = Field(
        None,
        gt=0,
        le=60,
        description="Read images that follow each other in a message as frames of a video, taken at this many frames "
        "per second; an extension of OpenAI's API",
    )
    media_io_kwargs: MediaHints | None = Field(None, description="Hints for all videos, as vLLM's clients send them")
    stream: bool | None = Field(False, description="Send the answer as server-sent events while it is generated")
    stream_options: StreamOptions | None = Field(None, description="Options of a streamed answer")


# ---- answers -------------------------------------------------------------------------------------------------------


class PromptTokens(BaseModel):
    """Breakdown of the tokens of a prompt."""

    cached_tokens: int = Field(description="Tokens that were in the prefix cache")
    audio_tokens: int = 0


class CompletionTokens(BaseModel):
    """Breakdown of the tokens of an answer."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """Number of tokens of a chat completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens = Field(default_factory=CompletionTokens)


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


class ChatHead(BaseModel):
    """Fields that a chat completion and the events of a streamed one share."""

    id: str
    created: int
    model: str
    temperature: float = Field(description="Temperature of the sampling; an extension of OpenAI's API")
    seed: int = Field(description="Seed of the sampling, which gives the answer again; an extension of OpenAI's API")


class ChatResponse(ChatHead):
    """Chat completion."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: Usage


def chunk(head: ChatHead, with_usage: bool, **choice: Any) -> dict[str, Any]:
    """Event of a streamed chat completion.

    Args:
        with_usage: The client asked for the usage, which is null in all events but the last.
        choice: Fields of the choice; or `usage`, for the last event, which has no choice.
    """
    usage = choice.pop("usage", None)
    choices = [] if usage else [{"index": 0, "logprobs": None, "finish_reason": None} | choice]
    event = head.model_dump() | {"object": "chat.completion.chunk", "choices": choices}
    return event | {"usage": usage} if with_usage else event
