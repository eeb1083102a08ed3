"""Reconstruction of videos from their tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import moving_texture
from tests.generation.conftest import apart
from videolavit.generation.reconstruct import ReconstructedClip, ReconstructSettings, reconstruct_clips
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import generator
from videolavit.media import DecomposeSettings, MediaError, decompose, iter_pictures, write_mp4
from videolavit.media.resize import resize_picture
from videolavit.progress import Progress

FAST = ReconstructSettings(keyframe_steps=2, video_steps=1, video_width=32, video_height=32)


def _frames(clips: list[ReconstructedClip]) -> np.ndarray:
    return np.concatenate([clip.frames for clip in clips])


@pytest.fixture(scope="module")
def clips(runtime: Runtime, video_file: Path) -> list[ReconstructedClip]:
    return list(reconstruct_clips(runtime, video_file, FAST))


def test_every_frame_is_reconstructed(clips: list[ReconstructedClip], video_file: Path) -> None:
    assert [clip.frames.shape for clip in clips] == [(24, 32, 32, 3), (6, 32, 32, 3)]
    assert [clip.original.shape for clip in clips] == [(24, 32, 32, 3), (6, 32, 32, 3)]
    source = [resize_picture(picture, 32, 32) for picture in iter_pictures(video_file, DecomposeSettings())]
    assert np.array_equal(np.concatenate([clip.original for clip in clips]), np.stack(source))
    assert [len(clip.motion) for clip in clips] == [135, 135]
    assert [0 < len(clip.visual) <= 64 for clip in clips] == [True, True]
    assert clips[0].motion != clips[1].motion


def test_the_metrics_are_bounded(clips: list[ReconstructedClip]) -> None:
    for clip in clips:
        assert 0 < clip.psnr < 40
        assert -1 <= clip.ssim < 0.9


def test_the_metrics_of_known_differences(clips: list[ReconstructedClip]) -> None:
    same = replace(clips[0], frames=clips[0].original)
    assert same.psnr == float("inf")
    assert same.ssim == pytest.approx(1, abs=1e-5)
    grey = replace(same, original=np.full_like(same.frames, 100), frames=np.full_like(same.frames, 110))
    assert grey.psnr == pytest.approx(10 * np.log10(255**2 / 100))
    assert grey.ssim == pytest.approx((2 * 100 * 110 + 2.55**2) / (100**2 + 110**2 + 2.55**2), abs=1e-3)
    noise = replace(same, frames=np.random.default_rng(0).integers(0, 255, same.frames.shape, np.uint8))
    assert noise.ssim < 0.2


def test_frames_depend_on_the_seed_and_codes_do_not(
    runtime: Runtime, video_file: Path, clips: list[ReconstructedClip]
) -> None:
    one = replace(FAST, clips=1)
    again, other = (list(reconstruct_clips(runtime, video_file, settings)) for settings in (one, replace(one, seed=1)))
    assert len(again) == 1
    assert again[0].frames.tobytes() == clips[0].frames.tobytes()
    assert apart(other[0].frames, clips[0].frames) > 20
    assert other[0].visual == clips[0].visual


def test_originals_in_place_of_tokens(runtime: Runtime, video_file: Path, clips: list[ReconstructedClip]) -> None:
    frames_of = {"tokens": clips[0].frames}
    stages: dict[str, set[str]] = {}
    for name, change in {
        "keyframes": {"keyframes": "original"},
        "motion": {"motion": "original"},
        "both": {"keyframes": "original", "motion": "original"},
    }.items():
        reported: set[str] = set()
        settings = replace(FAST, clips=1, **change)  # type: ignore[arg-type]
        (clip,) = reconstruct_clips(
            runtime, video_file, settings, lambda progress, reported=reported: reported.add(progress.stage)
        )
        assert (clip.visual, clip.motion) == (clips[0].visual, clips[0].motion)
        frames_of[name], stages[name] = clip.frames, reported
    assert stages["motion"] == {"clip 1 keyframe", "clip 1 frames"}
    assert stages["keyframes"] == stages["both"] == {"clip 1 frames"}
    assert len({frames.tobytes() for frames in frames_of.values()}) == 4


def test_a_short_clip_is_the_start_of_a_whole_one(runtime: Runtime, video_file: Path) -> None:
    """Generated from its keyframe and its motion vectors by the detokenizer itself."""
    settings = replace(FAST, keyframes="original", motion="original")
    *_, source = decompose(video_file)
    *_, clip = reconstruct_clips(runtime, video_file, settings)
    motion = torch.from_numpy(source.features((4, 4), rescale=False))[None]
    with runtime.use("video_detokenizer") as detokenizer:
        keyframe = resize_picture(source.keyframe, 32, 32)[None]
        (whole,) = detokenizer.generate(keyframe, motion, [generator(0, "video 1")], settings)
    assert whole.shape == (24, 32, 32, 3)
    assert np.array_equal(clip.frames, whole[:6])


def test_the_size_follows_the_source(runtime: Runtime, tmp_path: Path) -> None:
    """With about as many pixels as the model's own 64 x 32, in the aspect ratio of the source."""
    write_mp4(moving_texture(6, 128, 64, 1), tmp_path / "high.mp4", 6)
    settings = replace(FAST, video_width=None, video_height=None)
    (clip,) = reconstruct_clips(runtime, tmp_path / "high.mp4", settings)
    assert clip.frames.shape == (6, 64, 32, 3)


def test_a_keyframe_without_codes_is_generated(blind: Runtime, video_file: Path) -> None:
    (clip,) = reconstruct_clips(blind, video_file, replace(FAST, clips=1))
    assert clip.visual == []
    assert clip.frames.std() > 1


def test_bytes_are_a_source(runtime: Runtime, video_file: Path, clips: list[ReconstructedClip]) -> None:
    again = list(reconstruct_clips(runtime, video_file.read_bytes(), FAST))
    assert np.array_equal(_frames(again), _frames(clips))


def test_a_progress_callback_can_stop_it(runtime: Runtime, video_file: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage.startswith("clip 2"):
            raise InterruptedError(progress.stage)

    clips = reconstruct_clips(runtime, video_file, FAST, stop)
    assert len(next(clips).frames) == 24
    with pytest.raises(InterruptedError, match="clip 2 keyframe"):
        next(clips)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"video_width": 32}, "give both video_width and video_height"),
        ({"video_steps": 0}, "video_steps must be at least 1, not 0"),
        ({"clips": 0}, "clips must be at least 1, not 0"),
        ({"fps": 0}, "fps must be at least 1, not 0"),
        ({"keyframes": "generated"}, "keyframes"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructSettings(**wrong)


def test_impossible_sizes_and_sources_are_refused(runtime: Runtime, video_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 16, not 40 x 32"):
        list(reconstruct_clips(runtime, video_file, replace(FAST, video_width=40)))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError):
        list(reconstruct_clips(runtime, tmp_path / "text.mp4", FAST))
