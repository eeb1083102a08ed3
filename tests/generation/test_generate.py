"""Generation of pictures and videos from prompts, in batches and alone."""

from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from tests.generation.conftest import FAST, apart
from videolavit.generation.generate import generate_images, generate_videos
from videolavit.generation.program import GeneratedVideo
from videolavit.generation.prompts import Picture, Prompt
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import generator
from videolavit.generation.token_generator import PromptTooLong
from videolavit.models.sampling import draw_noise
from videolavit.progress import Progress

LEVELS = 2
"""Largest difference of a pixel between a batch and a single request: sums are taken in another order."""


def _equal(ours: GeneratedVideo, theirs: GeneratedVideo) -> bool:
    ids = (ours.visual, ours.motion) == (theirs.visual, theirs.motion)
    keyframes = [apart(*pair) for pair in zip(ours.keyframes, theirs.keyframes, strict=True)]
    return ids and max(keyframes) <= LEVELS and apart(ours.frames, theirs.frames) <= LEVELS


def test_pictures_of_a_batch_equal_single_ones(runtime: Runtime, pictures: list[Picture]) -> None:
    prompts = [
        Prompt(("a red ball",), seed=1),
        Prompt((pictures[0], "in blue"), seed=2),
        Prompt(("a much longer text about a ball, with details",), seed=3),
        Prompt((pictures[1], " and ", pictures[0]), seed=1),
    ]
    batch = generate_images(runtime, prompts, FAST)
    assert [picture.shape for picture in batch] == [(32, 48, 3)] * 4
    assert {picture.dtype for picture in batch} == {np.dtype(np.uint8)}
    alone = [generate_images(runtime, [prompt], FAST)[0] for prompt in prompts]
    assert max(apart(*pair) for pair in zip(batch, alone, strict=True)) <= LEVELS
    assert min(apart(batch[0], other) for other in batch[1:]) > 20


def test_a_picture_depends_on_seed_text_and_size(runtime: Runtime) -> None:
    settings = replace(FAST, width=32, height=16)
    first, again, seed, text = (
        generate_images(runtime, [Prompt((words,), number)], settings)[0]
        for words, number in [("a ball", 1), ("a ball", 1), ("a ball", 2), ("a cube", 1)]
    )
    assert first.shape == (16, 32, 3)
    assert first.tobytes() == again.tobytes()
    assert apart(first, seed) > 20
    assert apart(first, text) > 0


def test_prompts_with_pictures_have_their_own_guidance(runtime: Runtime, pictures: list[Picture]) -> None:
    def generated(prompt: Prompt, **changed: float) -> bytes:
        return generate_images(runtime, [prompt], replace(FAST, **changed))[0].tobytes()

    plain, mixed = Prompt(("a ball",)), Prompt((pictures[0], "a ball"))
    assert generated(plain) == generated(plain, mixed_guidance=50.0)
    assert generated(plain) != generated(plain, visual_guidance=50.0)
    assert generated(mixed) == generated(mixed, visual_guidance=50.0)
    assert generated(mixed) != generated(mixed, mixed_guidance=50.0)


def test_a_picture_without_codes_is_a_prompt(blind: Runtime, pictures: list[Picture]) -> None:
    (picture,) = generate_images(blind, [Prompt((pictures[0],))], FAST)
    assert picture.std() > 1


@pytest.fixture(scope="module")
def text_video(runtime: Runtime) -> GeneratedVideo:
    return generate_videos(runtime, [Prompt(("a red ball",), seed=1)], 1, FAST)[0]


def test_a_clip_from_a_text(text_video: GeneratedVideo) -> None:
    assert text_video.frames.shape == (24, 32, 32, 3)
    assert text_video.frames.dtype == np.uint8
    assert [keyframe.shape for keyframe in text_video.keyframes] == [(32, 48, 3)]
    assert [len(codes) for codes in text_video.motion] == [135]
    assert [20 <= len(codes) <= 24 for codes in text_video.visual] == [True]
    assert apart(text_video.frames[0], text_video.frames[-1]) > 0


def test_a_video_depends_on_its_seed(runtime: Runtime, text_video: GeneratedVideo) -> None:
    again, other = (generate_videos(runtime, [Prompt(("a red ball",), seed)], 1, FAST)[0] for seed in (1, 2))
    assert again.frames.tobytes() == text_video.frames.tobytes()
    assert other.visual != text_video.visual
    assert apart(other.frames, text_video.frames) > 20


def test_videos_of_a_batch_equal_single_ones(
    runtime: Runtime, pictures: list[Picture], text_video: GeneratedVideo
) -> None:
    prompts = [
        Prompt(("a red ball",), seed=1),
        Prompt((pictures[0],), seed=2),
        Prompt((pictures[1], "it rolls away", pictures[0], "to the left"), seed=3),
    ]
    batch = generate_videos(runtime, prompts, 1, FAST)
    assert _equal(batch[0], text_video)
    assert [len(video.visual) for video in batch] == [1, 0, 0]
    for video, prompt in zip(batch[1:], prompts[1:], strict=True):
        assert np.array_equal(video.keyframes[0], pictures[0])  # the prompt's last picture, unchanged
        assert _equal(video, generate_videos(runtime, [prompt], 1, FAST)[0])
    assert batch[1].motion != batch[2].motion


def test_motion_depends_on_the_picture_and_the_seed(runtime: Runtime, pictures: list[Picture]) -> None:
    prompts = [
        Prompt((picture, "go"), seed) for picture, seed in [(pictures[0], 1), (pictures[1], 1), (pictures[0], 2)]
    ]
    first, other_picture, other_seed = generate_videos(runtime, prompts, 1, FAST)
    assert first.motion != other_picture.motion
    assert first.motion != other_seed.motion


@pytest.fixture(scope="module")
def long_videos(runtime: Runtime) -> dict[str, list[GeneratedVideo]]:
    """Two clips under each constraint."""
    constraints: tuple[Literal["none", "noise", "inversion"], ...] = ("none", "noise", "inversion")
    settings = replace(FAST, keyframe_steps=4, constraint_rate=0.5)
    return {
        name: generate_videos(runtime, [Prompt(("a red ball",), seed=1)], 2, replace(settings, constraint=name))
        for name in constraints
    }


def test_long_videos_under_each_constraint(long_videos: dict[str, list[GeneratedVideo]]) -> None:
    for (video,) in long_videos.values():
        assert video.frames.shape == (24 + 23, 32, 32, 3)
        assert [keyframe.shape for keyframe in video.keyframes] == [(32, 48, 3)] * 2
        assert [len(codes) for codes in video.motion] == [135, 135]
        assert len(video.visual) == 2
    (none,), (noise,), (inversion,) = long_videos.values()
    for other in (noise, inversion):
        assert np.array_equal(none.frames[:24], other.frames[:24])  # a constraint affects later clips only
        assert none.visual == other.visual
        assert apart(none.keyframes[1], other.keyframes[1]) > 20
    assert apart(noise.keyframes[1], inversion.keyframes[1]) > 20


def test_the_next_keyframe_starts_at_the_last_frame(
    runtime: Runtime, long_videos: dict[str, list[GeneratedVideo]]
) -> None:
    (video,) = long_videos["noise"]
    with runtime.use("keyframe_detokenizer") as detokenizer:
        conditions = detokenizer.decode_codes([torch.tensor(video.visual[1])])
        latents = detokenizer.encode(video.frames[23][None], 32, 48)
        noise = draw_noise(tuple(latents.shape[1:]), [generator(1, "keyframe 1")], latents)
        start = detokenizer.noised_start(latents, noise, 0.5, 4)
        expected = detokenizer.decode(detokenizer.sample(conditions, start, 4, FAST.keyframe_guidance))
    assert np.array_equal(expected[0], video.keyframes[1])


@pytest.mark.parametrize("constraint", ["noise", "inversion"])
def test_long_videos_in_a_batch(
    runtime: Runtime, long_videos: dict[str, list[GeneratedVideo]], constraint: str
) -> None:
    settings = replace(FAST, keyframe_steps=4, constraint_rate=0.5, constraint=constraint)
    prompts = [Prompt(("a text of another length",), seed=4), Prompt(("a red ball",), seed=1)]
    _, video = generate_videos(runtime, prompts, 2, settings)
    (alone,) = long_videos[constraint]
    assert (video.visual, video.motion) == (alone.visual, alone.motion)
    assert apart(video.frames[:24], alone.frames[:24]) <= LEVELS
    # The second clip starts from the last frame: an untrained VAE amplifies small differences of it.
    assert np.abs(video.keyframes[1].astype(float) - alone.keyframes[1]).mean() < 5
    assert np.abs(video.frames.astype(float) - alone.frames).mean() < 5


def test_three_clips_after_a_text_and_after_a_picture(runtime: Runtime, pictures: list[Picture]) -> None:
    settings = replace(FAST, constraint="none")
    prompts = [Prompt(("a ball",), 1), Prompt((pictures[0], "a ball"), 2)]
    text, picture = generate_videos(runtime, prompts, 3, settings)
    assert text.frames.shape == picture.frames.shape == (24 + 2 * 23, 32, 32, 3)
    assert [len(video.visual) for video in (text, picture)] == [3, 2]
    assert [len(video.motion) for video in (text, picture)] == [3, 3]
    assert np.array_equal(picture.keyframes[0], pictures[0])
    for video, prompt in zip((text, picture), prompts, strict=True):
        assert _equal(video, generate_videos(runtime, [prompt], 3, settings)[0])


def test_progress_of_every_stage(runtime: Runtime) -> None:
    reported: list[Progress] = []
    settings = replace(FAST, keyframe_steps=3, video_steps=2, max_visual=20, constraint="none")
    generate_videos(runtime, [Prompt(("a",)), Prompt(("b",))], 2, settings, reported.append)
    stages = [
        (f"clip {clip} {stage}", total)
        for clip in (1, 2)
        for stage, total in [("picture tokens", 20), ("motion tokens", 135), ("keyframe", 3), ("frames", 2)]
    ]
    assert Counter(progress.stage for progress in reported) == dict(stages)
    for stage, total in stages:
        counts = [(progress.done, progress.total) for progress in reported if progress.stage == stage]
        assert counts == [(number, total) for number in range(1, total + 1)]


@pytest.mark.parametrize("stage", ["picture tokens", "keyframe", "frames"])
def test_progress_callbacks_can_stop_every_stage(runtime: Runtime, stage: str, text_video: GeneratedVideo) -> None:
    stages: list[str] = []

    def stop(progress: Progress) -> None:
        stages.append(progress.stage)
        if progress.stage == f"clip 1 {stage}":
            raise InterruptedError(progress.stage)

    with pytest.raises(InterruptedError, match=stage):
        generate_videos(runtime, [Prompt(("a red ball",), seed=1)], 1, FAST, stop)
    assert stages.count(f"clip 1 {stage}") == 1
    assert stages[-1] == f"clip 1 {stage}"


def test_the_runtime_works_after_a_stop(runtime: Runtime, text_video: GeneratedVideo) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "clip 1 frames":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate_videos(runtime, [Prompt(("something else",), seed=7)], 1, FAST, stop)
    (again,) = generate_videos(runtime, [Prompt(("a red ball",), seed=1)], 1, FAST)
    assert again.frames.tobytes() == text_video.frames.tobytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 100}, "multiples of 16, not 100 x 32"),
        ({"height": 8}, "multiples of 16, not 48 x 8"),
        ({"video_width": 40}, "multiples of 16, not 40 x 32"),
        ({"video_height": 24}, "multiples of 16, not 32 x 24"),
    ],
)
def test_impossible_sizes_are_refused_before_generation(runtime: Runtime, wrong: dict[str, int], message: str) -> None:
    reported: list[Progress] = []
    settings = replace(FAST, **wrong)
    with pytest.raises(ValueError, match=message):
        generate_videos(runtime, [Prompt(("a",))], 1, settings, reported.append)
    assert reported == []


def test_the_keyframe_size_does_not_matter_for_a_given_keyframe(runtime: Runtime, pictures: list[Picture]) -> None:
    settings = replace(FAST, width=100)
    assert len(generate_videos(runtime, [Prompt((pictures[0],))], 1, settings)) == 1
    with pytest.raises(ValueError, match="not 100 x 32"):
        generate_videos(runtime, [Prompt((pictures[0],))], 2, settings)


def test_impossible_numbers_of_clips_and_prompts_are_refused(runtime: Runtime) -> None:
    prompt = Prompt(("a",))
    with pytest.raises(ValueError, match="at least one clip, not 0"):
        generate_videos(runtime, [prompt], 0, FAST)
    with pytest.raises(ValueError, match="there is no prompt"):
        generate_videos(runtime, [], 1, FAST)
    with pytest.raises(ValueError, match="there is no prompt"):
        generate_images(runtime, [], FAST)
    with pytest.raises(PromptTooLong, match=r"99 clips do not fit: after a prompt of 1 tokens .* holds 25 of"):
        generate_videos(runtime, [prompt], 99, FAST)
    with pytest.raises(PromptTooLong, match="the prompt has 5000 tokens"):
        generate_images(runtime, [prompt, Prompt(("a" * 5000,))], FAST)
