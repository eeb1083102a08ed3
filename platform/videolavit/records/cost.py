"""Estimated cost of a run before it starts: a model fitted on measured files by `python -m benchmarks.estimate`."""

from videolavit.media import VideoInfo

CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")
"""Codecs with a cost of their own. Others cost as much as MPEG-4 does."""

OUTPUT_FORMAT = "yuv420p"
"""Pixel format that is encoded; pictures of others, such as those of full range, are converted first."""

BITS_PER_PIXEL = 0.1
"""Bits of a pixel where the header does not tell the bit rate."""

MOST_FRAMES_A_SECOND = 240.0
"""Containers without a frame rate name that of their clock, which may be thousands."""

COST = {
    "h264 pixels": 1.24e-9,
    "hevc pixels": 1.98e-9,
    "av1 pixels": 1.29e-9,
    "vp9 pixels": 3.03e-9,
    "mpeg4 pixels": 0.0,
    "bits": 1.1e-8,
    "output pixels": 5.64e-9,
    "converted pixels": 5.74e-9,
    "output frames": 1.77e-4,
    "samples": 0.00552,
}
"""Core-seconds of each unit that `cost_units` counts, on one core of a server."""

COST_SPREAD = 1.5
"""Factor by which a run may cost more or less than the model says, mostly by another processor."""

PIPELINE_SHARE = 0.15
"""Cost of calls through child processes and of writing shards, relative to that of decomposing."""

PIPELINE_SAMPLE = 0.007
"""Cost of the driver and of Ray for each sample, in core-seconds."""


def cost_units(info: VideoInfo, seconds: float, fps: int) -> dict[str, float]:
    """Units of work in a part of a video of the given length, by their names in `COST`."""
    pixels = info.width * info.height
    rate = info.num_frames / info.seconds if info.num_frames and info.seconds else info.frame_rate
    frames = seconds * min(rate, MOST_FRAMES_A_SECOND)
    codec = info.codec if info.codec in CODECS else "mpeg4"
    return {
        f"{codec} pixels": frames * pixels,
        "bits": seconds * info.bit_rate if info.bit_rate else frames * pixels * BITS_PER_PIXEL,
        "output pixels": seconds * fps * pixels,
        "converted pixels": seconds * fps * pixels * (info.pixel_format != OUTPUT_FORMAT),
        "output frames": seconds * fps,
        "samples": 1.0,
    }


def estimated_cost(info: VideoInfo, seconds: float, fps: int) -> float:
    """Estimated cost of decomposing a part of a video of the given length, in core-seconds."""
    return sum(COST[unit] * number for unit, number in cost_units(info, seconds, fps).items())


def with_pipeline(core_seconds: float, samples: int) -> float:
    """Core-seconds of decomposing together with what the pipeline around it takes."""
    return core_seconds * (1 + PIPELINE_SHARE) + samples * PIPELINE_SAMPLE
