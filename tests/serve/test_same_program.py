"""Videos of the service are those that the library makes in process from the same seeds."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import wait_for
from videolavit.generation.generate import generate_videos
from videolavit.generation.output import save_video
from videolavit.generation.program import GeneratedVideo
from videolavit.generation.prompts import Prompt
from videolavit.generation.reconstruct import ReconstructSettings, reconstruct_clips
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder
from videolavit.records.pictures import decode_image

from .running import QUICK, Running, picture, video

SETTINGS = GenerateSettings(**QUICK)  # type: ignore[arg-type]

LEVELS = 2
"""Largest difference of a pixel, in levels: other requests in a batch change rounding."""


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(ModelFolder("tiny"))


def _check(service: Running, job_id: str, ours: GeneratedVideo, folder: Path) -> None:
    """Compares the results of a job with our video."""
    path = f"/v1/videos/{job_id}"
    wait_for(lambda: service.get(path).json()["status"] not in ("queued", "in_progress"), "the job does not end")
    assert service.get(path).json()["tokens"] == ours.tokens
    shown = decode_image(service.get(f"{path}/content?variant=thumbnail").content)
    assert np.abs(shown.astype(int) - ours.keyframes[0]).max() <= LEVELS
    save_video(ours.frames, folder / "ours.mp4", SETTINGS.fps, {})
    theirs, encoded = (
        _frames(data) for data in (service.get(f"{path}/content").content, (folder / "ours.mp4").read_bytes())
    )
    assert np.abs(theirs - encoded).mean() < LEVELS


def _frames(data: bytes) -> np.ndarray:
    """Decoded frames [time, height, width, 3]."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def test_two_clips_from_a_text(service: Running, runtime: Runtime, tmp_path: Path) -> None:
    (ours,) = generate_videos(runtime, [Prompt(("a blue square",), 7)], 2, SETTINGS)
    job = service.client().videos.create(prompt="a blue square", seconds="8", extra_body={"seed": 7})
    _check(service, job.id, ours, tmp_path)


def test_a_clip_from_a_picture(service: Running, runtime: Runtime, tmp_path: Path) -> None:
    (ours,) = generate_videos(runtime, [Prompt((decode_image(picture()), "go"), 7)], 1, SETTINGS)
    reference = ("a.png", picture(), "image/png")
    job = service.client().videos.create(prompt="go", input_reference=reference, extra_body={"seed": 7})
    _check(service, job.id, ours, tmp_path)


def test_a_reconstruction(service: Running, runtime: Runtime, tmp_path: Path) -> None:
    source = video(seconds=5)
    steps = {name: QUICK[name] for name in ("keyframe_steps", "video_steps")}
    clips = list(reconstruct_clips(runtime, source, ReconstructSettings(**steps, seed=7)))  # type: ignore[arg-type]
    frames = np.concatenate([clip.frames for clip in clips])
    ours = GeneratedVideo(
        frames, [clip.keyframe for clip in clips], [clip.visual for clip in clips], [clip.motion for clip in clips]
    )
    job = service.post("/v1/videos/reconstruct", files={"video": ("a.mp4", source)}, data={"seed": "7"}).json()
    _check(service, job["id"], ours, tmp_path)
