"""Measured direction and colour, on rendered videos of the size that a small model generates."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from videolavit.evaluation.colour import shape_colour
from videolavit.evaluation.motion import decompose_enlarged, motion_agreement, shape_direction
from videolavit.evaluation.questions import direction_in_answer
from videolavit.evaluation.shape import train_shape_classifier
from videolavit.media import motion_features
from videolavit.media.resize import resize_picture
from videolavit.synth import COLOURS, DIRECTIONS, OUTLINES, MovingShape, SynthSettings, chat_records, draw_scene, render

SETTINGS = SynthSettings(width=192, height=128, fps=6, max_shapes=1)
PLAIN = replace(SETTINGS, background_contrast=0, shape_scale=1.75, speed=0.09)
"""Videos that small models learn: large shapes, and backgrounds whose texture has no motion of its own."""

VIDEOS = 24

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def videos() -> list[tuple[MovingShape, Frames]]:
    scenes = [draw_scene(SETTINGS, 4, index) for index in range(VIDEOS)]
    return [
        (scene.shapes[0], np.stack([resize_picture(frame, 48, 72) for frame in render(scene, SETTINGS)]))
        for scene in scenes
    ]


def blurred(frames: Frames) -> Frames:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1))) for frame in frames])


def noisy(frames: Frames) -> Frames:
    noise = np.random.default_rng(0).normal(0, 6, frames.shape)
    return np.asarray(np.clip(frames + noise, 0, 255), np.uint8)


@pytest.mark.parametrize(
    ("spoil", "directions", "colours"),
    [(np.copy, 1.0, 1.0), (blurred, 0.9, 0.95), (lambda frames: noisy(blurred(frames)), 0.8, 0.95)],
    ids=["as rendered", "blurred", "blurred and noisy"],
)
def test_direction_and_colour_are_measured_correctly(
    videos: list[tuple[MovingShape, Frames]], spoil: Callable[[Frames], Frames], directions: float, colours: float
) -> None:
    seen = [(shape, spoil(frames)) for shape, frames in videos]
    assert {shape.direction for shape, _ in seen} == set(DIRECTIONS)
    assert np.mean([shape_direction(frames) == shape.direction for shape, frames in seen]) >= directions
    assert np.mean([shape_colour(frames) == shape.colour for shape, frames in seen]) >= colours


def test_forms_are_told_apart() -> None:
    classifier = train_shape_classifier(PLAIN, (64, 96))
    assert classifier.accuracy > 0.98
    scenes = [draw_scene(PLAIN, 4, index) for index in range(VIDEOS)]
    videos = [np.stack([resize_picture(frame, 64, 96) for frame in [*render(scene, PLAIN)][::6]]) for scene in scenes]
    for spoil in (np.copy, blurred, noisy):
        seen = [classifier.shape(spoil(frames)) for frames in videos]
        assert np.mean([name == scene.shapes[0].shape for name, scene in zip(seen, scenes, strict=True)]) >= 0.95
        assert set(seen) == set(OUTLINES)


def test_made_motion_is_compared_with_what_was_told() -> None:
    """Frames at half the size agree with the motion of the video that they come from; others do not."""
    for index in range(4):
        frames = np.stack(list(render(draw_scene(PLAIN, 5, index), PLAIN)))
        (clip,) = decompose_enlarged(frames)
        motion = motion_features(clip.motion, clip.width, clip.height, (8, 12))
        small = np.stack([resize_picture(frame, 64, 96) for frame in frames])
        assert motion_agreement(small, motion) > 0.8
        assert motion_agreement(small[::-1], motion) < 0.1
        assert motion_agreement(np.repeat(small[:1], 24, axis=0), motion) < 0.1


def test_direction_follows_time_and_the_picture(videos: list[tuple[MovingShape, Frames]]) -> None:
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}
    for shape, frames in videos[:6]:
        assert shape_direction(frames[::-1]) == opposite[shape.direction]
        turned = np.ascontiguousarray(frames.swapaxes(1, 2))
        assert (
            shape_direction(turned) == {"right": "down", "down": "right", "left": "up", "up": "left"}[shape.direction]
        )


def test_what_stands_still_has_no_direction(videos: list[tuple[MovingShape, Frames]]) -> None:
    _, frames = videos[0]
    assert shape_direction(np.repeat(frames[:1], 24, axis=0)) is None
    assert shape_direction(np.full((24, 48, 72, 3), 90, np.uint8)) is None


def test_colours_are_told_apart() -> None:
    frames = np.full((4, 48, 72, 3), 90, np.uint8)
    for name, value in COLOURS.items():
        frames[:, 10:22, 30:42] = np.array(value) * 0.8
        assert shape_colour(frames) == name


def test_answers_name_a_direction_or_none() -> None:
    assert direction_in_answer("It moves left.") == "left"
    assert direction_in_answer("Right, and then left.") == "right"
    assert direction_in_answer("It is upright.") is None
    assert direction_in_answer("") is None


def test_questions_of_two_shapes_name_the_one_they_are_about() -> None:
    scene = next(one for index in range(50) if len((one := draw_scene(SynthSettings(), 0, index)).shapes) == 2)
    records = list(chat_records(scene, "7", "videos/7.mp4"))
    assert len(records) == 4
    for record in records:
        question, answer = (turn["value"] for turn in record["conversations"])
        (shape,) = (shape for shape in scene.shapes if f"the {shape.colour} one" in question)
        assert answer in (f"It moves {shape.direction}.", f"It is a {shape.shape}.")
