"""Bodies of requests for images and their answers."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from .base import NeutralValues, Request, Seed, Size


class ImageRequest(Request):
    """Request to generate images."""

    ignored = ("safety_identifier", "user")
    neutral: ClassVar[NeutralValues] = {
        "background": ("auto", "opaque"),
        "complexity": (),
        "frame_count": (),
        "frame_duration_ms": (),
        "moderation": ("auto", "low"),
        "output_compression": (100,),
        "output_format": ("png",),
        "partial_images": (0,),
        "quality": ("auto", "standard"),
        "stream": (False,),
        "style": ("vivid",),
        "svg": (),
    }

    prompt: str = Field(min_length=1, description="Text to generate images for")
    model: str | None = Field(None, description="Name of the model")
    n: int | None = Field(1, ge=1, description="Number of images; image i has the seed plus i")
    size: Size | None = Field(None, description="Width x height, in pixels; `auto` for the model's own")
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json", description="Form of the images in the answer: base64, or a data URL"
    )
    seed: Seed | None = None


class GeneratedImage(BaseModel):
    """Generated image, a PNG file."""

    b64_json: str | None = Field(default=None, description="File in base64")
    url: str | None = Field(default=None, description="Data URL of the file")
    seed: int = Field(description="Seed that gives the image again; an extension of OpenAI's API")
    revised_prompt: str | None = None


class ImageResponse(BaseModel):
    """Generated images."""

    created: int
    data: list[GeneratedImage]
