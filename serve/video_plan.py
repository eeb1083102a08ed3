"""Video that a job makes: the nearest one that the model can make to what a request asks for."""

from dataclasses import replace
from typing import Any

from videolavit.generation.detokenize import nearest_size
from videolavit.generation.program import frames_of_clips, nearest_clips
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder

from .errors import bad_request
from .protocol.videos import VideoRequest
from .settings import ServeSettings

SAMPLER_OPTIONS = ("num_inference_steps", "guidance_scale")
"""Options of the samplers in requests for videos."""


def plan_video(request: VideoRequest, model: ModelFolder, settings: ServeSettings) -> dict[str, Any]:
    """Content of the file for a request, options of the samplers, and `warnings` on what differs from the request.

    Raises:
        ApiError: fields of the request disagree, or it exceeds a limit.
    """
    fps, limits = settings.generation.fps, settings.limits
    seconds = _asked_seconds(request, fps)
    if seconds is not None and seconds > limits.seconds:
        field = "num_frames" if request.seconds is None else "seconds"
        raise bad_request(f"at most {limits.seconds:g} seconds are generated, not {seconds:g}", field)
    clips = 1 if seconds is None else nearest_clips(seconds * fps, limits.seconds * fps)
    size = _asked_size(request)
    height, width = (model.sizes.video_height, model.sizes.video_width) if size is None else nearest_size(model, *size)
    if height * width > limits.pixels:
        field = "size" if request.width is None else "width"
        raise bad_request(f"at most {limits.pixels} pixels are generated, not {width}x{height}", field)
    steps = request.num_inference_steps
    if steps is not None and steps > limits.inference_steps:
        message = f"at most {limits.inference_steps} denoising steps are taken, not {steps}"
        raise bad_request(message, "num_inference_steps")
    file = describe_file(frames_of_clips(clips), (height, width), fps)
    options = request.model_dump(include=set(SAMPLER_OPTIONS), exclude_none=True)
    warnings = _differences(request, size, file, model.pixel_multiple("video_detokenizer"))
    return file | options | {"warnings": warnings}


def offered_seconds(settings: ServeSettings) -> list[str]:
    """Lengths of the videos that can be made, in seconds: at most the shortest 32."""
    fps, most_frames = settings.generation.fps, settings.limits.seconds * settings.generation.fps
    clips = min(32, nearest_clips(most_frames, most_frames))
    return [_seconds(frames_of_clips(count), fps) for count in range(1, clips + 1)]


def describe_file(num_frames: int, size: tuple[int, int], fps: int) -> dict[str, Any]:
    """Content of a file, as its job tells it.

    Args:
        size: Height and width, in pixels.
        fps: Frames per second.
    """
    size_in_words = f"{size[1]}x{size[0]}"
    return {"seconds": _seconds(num_frames, fps), "size": size_in_words, "num_frames": num_frames, "fps": fps}


def _seconds(num_frames: int, fps: int) -> str:
    return str(round(num_frames / fps, 3)).removesuffix(".0")


def sampler_settings(settings: GenerateSettings, request: dict[str, Any]) -> GenerateSettings:
    """Settings of the service, with the options of the samplers of a job's request."""
    if (steps := request.get("num_inference_steps")) is not None:
        settings = replace(settings, keyframe_steps=steps, video_steps=steps)
    if (scale := request.get("guidance_scale")) is not None:
        first = min(settings.min_guidance, scale)
        settings = replace(settings, keyframe_guidance=scale, min_guidance=first, max_guidance=scale)
    return settings


def _asked_seconds(request: VideoRequest, own_fps: int) -> float | None:
    """Length that a request asks for, in seconds; None for any. Raises ApiError if its fields disagree."""
    seconds, frames, fps = request.seconds, request.num_frames, request.fps or own_fps
    if frames is None:
        return seconds
    if seconds is not None and abs(seconds * fps - frames) > 1:  # servers differ by a frame in what a second has
        message = f"seconds, {seconds:g}, and num_frames, {frames}, disagree at {fps:g} frames per second; give one"
        raise bad_request(message, "seconds")
    return frames / fps


def _asked_size(request: VideoRequest) -> tuple[int, int] | None:
    """Height and width that a request asks for, in pixels; None for any. Raises ApiError if its fields disagree."""
    by_size = None
    if request.size not in (None, "auto"):
        wide, high = map(int, request.size.split("x"))
        by_size = high, wide
    if request.width is None or request.height is None:
        if request.width != request.height:
            missing = "width" if request.width is None else "height"
            raise bad_request(f"{missing} is missing: give width and height, or neither", missing)
        return by_size
    sides = request.height, request.width
    if by_size not in (None, sides):
        message = f"size, {request.size}, and width and height, {sides[1]}x{sides[0]}, disagree; give one of them"
        raise bad_request(message, "size")
    return sides


def _differences(request: VideoRequest, size: tuple[int, int] | None, file: dict[str, Any], multiple: int) -> list[str]:
    """Sentences on each field in which a file differs from a request."""
    whole_clips = "the nearest length of whole clips is made"
    found = []
    if request.seconds is not None and abs(request.seconds - float(file["seconds"])) > 0.001:
        found.append(f"seconds is {file['seconds']}, not {request.seconds:g}: {whole_clips}")
    if request.num_frames not in (None, file["num_frames"]):
        found.append(f"num_frames is {file['num_frames']}, not {request.num_frames}: {whole_clips}")
    if request.fps not in (None, file["fps"]):
        found.append(f"fps is {file['fps']}, not {request.fps:g}: the model makes motion at this rate")
    if size is not None and file["size"] != (asked := f"{size[1]}x{size[0]}"):
        found.append(f"size is {file['size']}, not {asked}: sides are multiples of {multiple} pixels")
    return found
