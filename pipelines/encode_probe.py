"""Short measurement of the tokenizers, on a device that a run would use, for the estimate of a plan."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from videolavit.media import CLIP_FRAMES
from videolavit.records.tokenizer_info import EncodeSettings, TokenizerInfo

PROBE_BATCHES = 4
"""Batches of each kind that are timed, after one that is not."""

PROBE_LIMIT = 180.0
"""Longest time that the measurement may take, in seconds; a cluster that grows may need it to get a GPU."""


@dataclass(frozen=True)
class EncodeSpeed:
    """Speed of the tokenizers on one device.

    Args:
        picture_seconds: Seconds that the codes of a picture take.
        motion_seconds: Seconds that the codes of the motion of a clip take.
    """

    picture_seconds: float
    motion_seconds: float

    def hours(self, figures: Mapping[str, float]) -> float:
        """Hours of the device for numbers of clips and images, as `figures` of a plan has them."""
        clips, images = figures.get("clips", 0.0), figures.get("images", 0.0)
        return (clips * (self.picture_seconds + self.motion_seconds) + images * self.picture_seconds) / 3600


def measure_on_cluster(encode: EncodeSettings, tokenizers: TokenizerInfo, gpu_fraction: float) -> EncodeSpeed | None:
    """Measures the tokenizers on a node of the connected Ray; None where none was free in time.

    Raises:
        ModelError: the node holds another model, or cannot load it.
    """
    options = {"num_gpus": gpu_fraction, "num_cpus": 0 if gpu_fraction else 1, "max_retries": 0}
    measuring = ray.remote(**options)(measure_encoder).remote(encode, tokenizers, "cuda" if gpu_fraction else "cpu")
    done, _ = ray.wait([measuring], timeout=PROBE_LIMIT)
    if not done:
        ray.cancel(measuring, force=True)
        return None
    try:
        speed: EncodeSpeed = ray.get(measuring)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return speed


def measure_encoder(encode: EncodeSettings, tokenizers: TokenizerInfo, device: str) -> EncodeSpeed:
    """Times batches of noise, whose codes take as long as those of pictures."""
    import torch

    from videolavit.records.encode import Encoder  # torch, which the driver does without

    encoder, rng, batch = (
        Encoder(encode, tokenizers, device),
        np.random.default_rng(0),
        encode.batch(tokenizers, device),
    )
    size = tokenizers.picture_size
    pictures = rng.integers(0, 256, (batch * PROBE_BATCHES, size, size, 3), np.uint8)
    motion = rng.standard_normal((batch * PROBE_BATCHES, 2, CLIP_FRAMES, *tokenizers.motion_size)).astype(np.float32)

    def seconds(encode_some: Callable[[Any], Any], values: Any) -> float:
        encode_some(values[:batch])
        started = time.monotonic()
        encode_some(values)
        return (time.monotonic() - started) / len(values)

    with torch.inference_mode():
        return EncodeSpeed(seconds(encoder.pictures, pictures), seconds(encoder.motion, motion))
