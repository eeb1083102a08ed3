"""Programs: steps, what they need, what a video keeps, and random numbers."""

from typing import Literal

import numpy as np
import pytest

from videolavit.generation.program import (
    ClipCodes,
    ClipRequest,
    FramesStep,
    KeyframeRequest,
    KeyframeStep,
    Program,
    Step,
    TokensRequest,
    frames_of_clips,
    nearest_clips,
    picture_program,
    reconstruction_steps,
    video_program,
)
from videolavit.generation.settings import generator

Place = tuple[str, int]


def _needs(program: Program) -> dict[Place, list[Place]]:
    """Steps by name and clip, in order, with what they need."""

    def place(step: Step) -> Place:
        return step.name, step.clip

    return {place(step): [place(needed) for needed in step.needs] for step in program.steps}


@pytest.mark.parametrize("constraint", ["noise", "inversion", "none"])
def test_steps_of_a_video(constraint: Literal["noise", "inversion", "none"]) -> None:
    program = video_program(["a ball"], 1, 2, constraint)
    linked = [] if constraint == "none" else [("frames", 0)]
    assert list(_needs(program).items()) == [
        (("keyframe", 0), []),
        (("frames", 0), [("keyframe", 0)]),
        (("keyframe", 1), linked),
        (("frames", 1), [("keyframe", 1)]),
    ]
    assert program.codes == TokensRequest(["a ball"], 1, clips=2)


def test_steps_of_a_video_from_a_picture_of_a_picture_and_of_a_reconstruction() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    given = video_program([[1, 2], "go"], 1, 2, "none", picture)
    assert list(_needs(given)) == [("frames", 0), ("keyframe", 1), ("frames", 1)]
    assert given.codes == TokensRequest([[1, 2], "go"], 1, clips=2, first_given=True)
    assert _needs(picture_program(["a ball"], 1)) == {("keyframe", 0): []}
    tokens = Program({}, reconstruction_steps(1, 3, 24))
    assert _needs(tokens) == {("keyframe", 3): [], ("frames", 3): [("keyframe", 3)]}
    assert _needs(Program({}, reconstruction_steps(1, 3, 24, picture))) == {("frames", 3): []}


def test_a_video_is_joined_from_what_its_steps_keep() -> None:
    picture = np.full((2, 2, 3), 7, np.uint8)
    program = video_program([[1], "go"], 1, 2, "noise", picture)
    codes = {0: ClipCodes(None, [4]), 1: ClipCodes([5, 6], [7])}
    pixels = {step: np.full((3, 2, 2, 3), 10 * (step.clip + 1), np.uint8) for step in program.steps}
    for step in program.steps:
        if isinstance(step, KeyframeStep):
            pixels[step] = pixels[step][0]
    pixels[program.steps[0]][-1] = 99
    requests = [step.request(codes[step.clip], pixels) for step in program.steps]
    first, keyframe, second = requests
    assert isinstance(first, ClipRequest)
    assert isinstance(keyframe, KeyframeRequest)
    assert isinstance(second, ClipRequest)
    assert (first.keyframe is picture, first.motion) == (True, [4])
    assert keyframe.last is not None
    assert (keyframe.last.max(), keyframe.last.min(), keyframe.codes) == (99, 99, [5, 6])
    assert (second.keyframe.max(), second.motion, second.clip) == (20, [7], 1)
    video = program.video(codes, pixels)
    assert video.frames[:, 0, 0, 0].tolist() == [10, 10, 99, 20, 20]
    assert [keyframe[0, 0, 0] for keyframe in video.keyframes] == [7, 20]
    assert (video.visual, video.motion, video.tokens) == ([[5, 6]], [[4], [7]], {"visual": 2, "motion": 2})


def test_the_length_of_a_video_is_known_before_it_is_made() -> None:
    for clips in range(1, 9):
        frames = video_program(["a ball"], 1, clips, "noise").num_frames
        assert frames == frames_of_clips(clips)
        assert nearest_clips(frames, frames) == clips
        assert nearest_clips(frames + 11, 1000) == clips
        assert nearest_clips(frames + 12, 1000) == clips + 1
        assert nearest_clips(frames + 12, frames + 22) == clips
    assert (nearest_clips(1, 1000), nearest_clips(100, 1)) == (1, 1)
    steps = [*reconstruction_steps(1, 0, 24), *reconstruction_steps(1, 1, 6)]
    assert Program({}, steps).num_frames == 30


def test_a_reconstruction_keeps_the_length_of_its_clip() -> None:
    *_, frames = reconstruction_steps(1, 0, 6)
    assert isinstance(frames, FramesStep)
    assert len(range(24)[frames.kept]) == 6


def test_random_numbers_are_those_of_seed_purpose_and_clip() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    keyframe = KeyframeRequest([1], 5, 2)
    drawn = {
        "tokens": TokensRequest(["a"], 5).random(),
        "keyframe 2": keyframe.random(),
        "keyframe steps 2": keyframe.step_random(),
        "video 2": ClipRequest(picture, [1], 5, 2).random(),
    }
    for purpose, random in drawn.items():
        assert random.initial_seed() == generator(5, purpose).initial_seed()
