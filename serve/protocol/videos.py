"""Bodies of requests for videos and their answers."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from .base import NeutralValues, Request, Seed, Size


class ReferenceUrl(Request):
    """Image that a video starts from."""

    neutral: ClassVar[NeutralValues] = {"file_id": ()}

    image_url: str = Field(description="Data URL, or http(s) URL of a host that the service allows")


class VideoRequest(Request):
    """Request to generate a video, with the fields that vLLM-Omni, SGLang and Dynamo share."""

    ignored = ("user",)
    neutral: ClassVar[NeutralValues] = {"negative_prompt": ("",)}

    prompt: str = Field("", description="Text to generate a video for")
    model: str | None = Field(None, description="Name of the model")
    seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Length of the video, in seconds; the nearest one that the model can make is made",
    )
    size: Size | None = Field(
        None,
        description="Width x height, in pixels, rounded to what the model can make; `auto` for the model's own",
    )
    width: int | None = Field(None, ge=1, lt=100_000, description="Width, in pixels, with `height` in place of `size`")
    height: int | None = Field(None, ge=1, lt=100_000, description="Height, in pixels, with `width` in place of `size`")
    num_frames: int | None = Field(
        None, ge=1, lt=10**9, description="Number of frames, at `fps`, in place of `seconds`"
    )
    fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Frames per second that `num_frames` counts; the model's own where it is not given. The video has "
        "the model's own in any case",
    )
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps of each keyframe and of each clip")
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=20,
        description="Guidance scale of keyframes and, at the end of each clip, of its frames; 1 for no guidance",
    )
    seed: Seed | None = None
    input_reference: ReferenceUrl | None = Field(None, description="Picture that the video starts from")


class ReconstructRequest(Request):
    """Request to reconstruct a video from its tokens."""

    ignored = ("user",)

    model: str | None = Field(None, description="Name of the model")
    seed: Seed | None = None


class VideoError(BaseModel):
    """Reason why a video job failed."""

    code: str
    message: str


class VideoJob(BaseModel):
    """Video job."""

    id: str
    object: Literal["video"] = "video"
    kind: Literal["generate", "reconstruct"] = Field(description="Work of the job; an extension of OpenAI's API")
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="Share of the work that is done, in percent")
    created_at: int = Field(description="Time of the request, in seconds since 1970")
    completed_at: int | None = None
    expires_at: int | None = Field(None, description="Time when the result is deleted, in seconds since 1970")
    prompt: str | None = None
    seconds: str | None = Field(
        description="Length of the file, in seconds; null for a reconstruction until its video has been decoded"
    )
    size: str | None = Field(description="Width x height of the file, in pixels; null as `seconds`")
    num_frames: int | None = Field(None, description="Number of frames of the file; null as `seconds`")
    fps: int | None = Field(None, description="Frames per second of the file")
    seed: int = Field(description="Seed that gives the video again")
    warnings: list[str] = Field(
        default_factory=list, description="Sentences on where the video differs from what was asked for"
    )
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
