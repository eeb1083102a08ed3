"""Differences that decide a resume, and those that do not."""

from typing import Any

import pytest

from videolavit.training.resuming import changes, refused

IDENTITY: dict[str, Any] = {
    "component": "language-model",
    "objective": {"stage": "pretrain", "noise": 0.1, "show_captions": 32, "chat": {"max_clips": 8, "cache_gb": 1.0}},
    "sources": [{"name": "/data/tokens", "samples": 12, "content": "aa"}],
    "model": {"hidden_size": 8, "transformers_version": "5.1.0"},
    "seed": 0,
}
DEFAULTS = {"objective": {"noise": 0.0, "show_captions": 32, "chat": {"max_clips": 8, "cache_gb": 1.0}}}


def changed(*keys: str, value: Any) -> dict[str, Any]:
    """The identity with another value at a place."""
    found = dict(IDENTITY)
    place = found
    for key in keys[:-1]:
        place[key] = dict(place[key])
        place = place[key]
    place[keys[-1]] = value
    return found


def without(*keys: str) -> dict[str, Any]:
    found = changed(*keys, value=None)
    place = found
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return found


@pytest.mark.parametrize(
    "theirs",
    [
        IDENTITY,
        changed("objective", "show_captions", value=8),
        changed("objective", "validation_samples", value=8),
        changed("objective", "chat", "cache_gb", value=2.0),
        changed("model", "transformers_version", value="5.22.0"),
        without("model", "transformers_version"),
        without("objective", "chat", "max_clips"),
        changed("sources", value=[{"name": "elsewhere", "samples": 12, "content": "aa"}]),
        changed("sources", value=[{"name": "/data/tokens", "samples": 12}]),  # an earlier version
    ],
)
def test_what_decides_nothing(theirs: dict[str, Any]) -> None:
    assert changes(theirs, IDENTITY, DEFAULTS) == {}


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        (changed("seed", value=1), "seed: 1 -> 0"),
        (changed("objective", "noise", value=0.2), "objective.noise: 0.2 -> 0.1"),
        (without("objective", "noise"), "objective.noise: 0.0 -> 0.1"),  # not at its default
        (changed("objective", "chat", "max_clips", value=4), "objective.chat.max_clips: 4 -> 8"),
        (changed("model", "hidden_size", value=4), "model.hidden_size: 4 -> 8"),
        (
            changed("sources", value=[{"name": "/data/tokens", "samples": 12, "content": "bb"}]),
            "sources: [{'content': 'bb', 'samples': 12}] -> [{'content': 'aa', 'samples': 12}]",
        ),
    ],
)
def test_what_decides(theirs: dict[str, Any], line: str) -> None:
    found = changes(theirs, IDENTITY, DEFAULTS)
    assert list(found.values()) == [line]
    (name,) = found
    assert refused(found, ["other"]) == found
    assert refused(found, [name]) == {}
    assert refused(found, [name.partition(".")[0]]) == {}
