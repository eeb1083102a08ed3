"""Bodies of requests for videos and their answers."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from .base import NeutralValues, Request, Seed, Size


class ReferenceUrl(Request):
    """Image that a video starts from."""

    neutral: ClassVar[NeutralValues] = {"file_id": ()}

    image_url: str = Field(description="Data URL, or http(s) URL of a host that the service allows")


class VideoRequest(Request):
    """Request to generate a video."""

    ignored = ("user",)

    prompt: str = Field("", description="Text to generate a video for")
    model: str | None = Field(None, description="Name of the model")
    seconds: float = Field(4.0, gt=0, allow_inf_nan=False, description="Length of the video, in seconds")
    size: Size | None = Field(None, description="Width x height, in pixels; `auto` for the model's own")
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
