"""Settings that reconstruction and animation share: clips of a video that are made again, at a size that fits."""

from dataclasses import fields

from pydantic.dataclasses import dataclass

from videolavit.models.folder import ModelFolder
from videolavit.models.network import STRICT
from videolavit.models.video_detokenizer import VideoSettings

from .detokenize import size_like
from .settings import GenerateSettings


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClipSettings(VideoSettings):
    """Settings for making clips of a video again.

    Args:
        video_width: Width of the result, in pixels; None for about as many pixels as the model's own size, in the
            aspect ratio of the source.
        video_height: Height of the result, in pixels; None as for the width.
        clips: Number of clips from the start of the video; None for all.
        seed: Seed of all noise.
    """

    video_width: int | None = None
    video_height: int | None = None
    clips: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.video_width is None) != (self.video_height is None):
            raise ValueError("give both video_width and video_height, or neither")
        for name in ("keyframe_steps", "video_steps", "fps", "decode_chunk", "clips"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    def size(self, model: ModelFolder, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result, in pixels, for a source of a size."""
        if self.video_width is not None and self.video_height is not None:
            return self.video_height, self.video_width
        return size_like(model, height, width)

    def generation(self, size: tuple[int, int]) -> GenerateSettings:
        """Settings of the same names for generation, with a height and a width in pixels."""
        names = {field.name for field in fields(self)} & {field.name for field in fields(GenerateSettings)}
        sizes = {"video_height": size[0], "video_width": size[1]}
        return GenerateSettings(**{name: getattr(self, name) for name in names} | sizes)
