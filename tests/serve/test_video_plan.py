"""Rounding of requests for videos to what the model makes, and contradictions in them."""

from dataclasses import replace
from typing import Any

import pytest

from serve.errors import ApiError
from serve.protocol.videos import VideoRequest
from serve.settings import Limits, ServeSettings
from serve.video_plan import offered_seconds, plan_video, sampler_settings
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder

MODEL = ModelFolder("tiny")
"""Model of videos with 72 x 48 pixels, whose sides are multiples of 8."""


def plan(limit: float = 20, **fields: Any) -> dict[str, Any]:
    return plan_video(VideoRequest(prompt="x", **fields), MODEL, ServeSettings(limits=Limits(seconds=limit)))


@pytest.mark.parametrize(
    ("asked", "made", "differing"),
    [
        ({}, ("4", "72x48", 24), []),
        ({"seconds": 4, "size": "auto"}, ("4", "72x48", 24), []),
        ({"seconds": "8"}, ("7.833", "72x48", 47), ["seconds is 7.833, not 8"]),
        ({"seconds": "7.833", "num_frames": 47, "fps": 6}, ("7.833", "72x48", 47), []),
        ({"seconds": 1}, ("4", "72x48", 24), ["seconds is 4, not 1"]),
        ({"seconds": 12}, ("11.667", "72x48", 70), ["seconds is 11.667, not 12"]),
        ({"seconds": 20}, ("19.333", "72x48", 116), ["seconds is 19.333, not 20"]),
        ({"num_frames": 50}, ("7.833", "72x48", 47), ["num_frames is 47, not 50"]),
        ({"num_frames": 81, "fps": 16}, ("4", "72x48", 24), ["num_frames is 24, not 81", "fps is 6, not 16"]),
        ({"seconds": 5, "num_frames": 81, "fps": 16}, ("4", "72x48", 24), ["seconds is 4", "num_frames", "fps is 6"]),
        ({"seconds": 4, "fps": 24}, ("4", "72x48", 24), ["fps is 6, not 24"]),
        ({"width": 96, "height": 64, "size": "96x64"}, ("4", "96x64", 24), []),
        ({"width": 97, "height": 3}, ("4", "96x8", 24), ["size is 96x8, not 97x3: sides are multiples of 8"]),
        ({"size": "70x47"}, ("4", "72x48", 24), ["size is 72x48, not 70x47"]),
    ],
)
def test_the_nearest_video_is_made_and_what_differs_is_said(
    asked: dict[str, Any], made: tuple[str, str, int], differing: list[str]
) -> None:
    planned = plan(**asked)
    assert (planned["seconds"], planned["size"], planned["num_frames"], planned["fps"]) == (*made, 6)
    assert len(planned["warnings"]) == len(differing)
    assert all(says.startswith(field) for says, field in zip(planned["warnings"], differing, strict=True))


def test_rounding_does_not_exceed_the_limit() -> None:
    assert plan(limit=7, seconds=7)["num_frames"] == 24
    assert plan(limit=7.9, seconds=7)["num_frames"] == 47
    assert plan(limit=2, seconds=2)["num_frames"] == 24  # the shortest there is


@pytest.mark.parametrize(("limit", "lengths"), [(2, ["4"]), (8, ["4", "7.833"]), (12, ["4", "7.833", "11.667"])])
def test_offered_lengths_are_made_as_they_are(limit: float, lengths: list[str]) -> None:
    offered = offered_seconds(ServeSettings(limits=Limits(seconds=limit)))
    assert offered == lengths
    for seconds in offered[1:]:
        planned = plan(limit=limit, seconds=seconds)
        assert (planned["seconds"], planned["warnings"]) == (seconds, [])


@pytest.mark.parametrize(
    ("asked", "param", "says"),
    [
        ({"seconds": 4, "num_frames": 47}, "seconds", "seconds, 4, and num_frames, 47, disagree at 6 frames"),
        ({"seconds": 4, "num_frames": 24, "fps": 24}, "seconds", "disagree at 24 frames"),
        ({"size": "96x64", "width": 64, "height": 96}, "size", "size, 96x64, and width and height, 64x96, disagree"),
        ({"width": 64}, "height", "height is missing"),
        ({"height": 64}, "width", "width is missing"),
        ({"seconds": 21}, "seconds", "at most 20 seconds"),
        ({"num_frames": 500, "fps": 24}, "num_frames", "at most 20 seconds are generated, not 20.8333"),
        ({"width": 2000, "height": 2000}, "width", "at most 1048576 pixels"),
        ({"num_inference_steps": 101}, "num_inference_steps", "at most 100"),
    ],
)
def test_contradictions_and_limits_name_the_fields(asked: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ApiError) as refused:
        plan(**asked)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert says in refused.value.message


def test_options_of_the_samplers_reach_both_detokenizers() -> None:
    own = GenerateSettings(min_guidance=1.5)
    assert sampler_settings(own, plan()) == own
    changed = sampler_settings(own, plan(num_inference_steps=7, guidance_scale=5))
    assert changed == replace(own, keyframe_steps=7, video_steps=7, keyframe_guidance=5, max_guidance=5)
    assert sampler_settings(own, plan(guidance_scale=1)).min_guidance == 1
