"""Every network and loop against recorded numbers: those of the reference, and a small pack of the project's own.

Everything that belongs to one pack (sizes, cases, seeds, tolerances) is read from its files.
"""

import numpy as np
import pytest
import torch

from tests.parity import language, loops, networks, rule
from tests.parity.pack import OWN, Module, Pack, case_ids
from tests.parity.results import Results, as_array, sampled

RECIPES = {
    "motion_tokenizer": networks.motion_tokenizer,
    "motion_condition": networks.motion_condition,
    "visual_tokenizer": networks.visual_tokenizer,
    "quantizer": networks.quantizer,
    "condition_decoder": networks.condition_decoder,
    "video_unet": networks.video_unet,
    "image_preprocessing": networks.image_preprocessing,
    "detokenizer": loops.detokenizer,
    "keyframe_loop": loops.keyframe_loop,
    "llm": language.llm,
}
"""By the beginning of a module's name: `motion_condition_temporal` is a `motion_condition` of another configuration."""

ELSEWHERE = {"motion_vectors"}
"""Modules of `test_media.py`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a module or component of the two packs."""
    packs = {"given": Pack.given(metafunc.config), "own": Pack(OWN)}
    for fixture, keys in {"module": ("modules",), "component": ("parameter_sha256",), "any_pack": ()}.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(
                fixture, [case for name, pack in packs.items() for case in _cases(name, pack, fixture, keys)]
            )


def _cases(label: str, pack: Pack, fixture: str, keys: tuple[str, ...]) -> list[object]:
    if not pack.has("modules.json"):
        return [pytest.param(None, id=f"{label}-none", marks=pytest.mark.skip(pack.absent))]
    if fixture == "any_pack":
        return [pytest.param(pack, id=label)]
    names = [name for name in case_ids(pack, "modules.json", *keys) if name not in ELSEWHERE]
    return [pytest.param((pack, name), id=f"{label}-{name}") for name in names]


def compute(module: Module) -> Results:
    """A module's outputs by this project's code."""
    kind = max((kind for kind in RECIPES if module.name.startswith(kind)), key=len, default=None)
    assert kind is not None, f"nothing here makes the outputs of {module.name}"
    with torch.no_grad():
        return RECIPES[kind](module)


def test_module(module: tuple[Pack, str]) -> None:
    """Every recorded output, element by element."""
    given = Module(*module)
    results = compute(given)
    assert given.outputs
    assert not given.outputs.keys() - results.outputs.keys(), "recorded outputs that nothing here compares"
    recorded = given.recorded()
    problems = [_difference(name, results, recorded[name], spec) for name, spec in given.outputs.items()]
    assert not any(problems), "\n".join(filter(None, problems))
    for name in given.facts.keys() & results.facts.keys():
        fact = given.facts[name]
        assert results.facts[name] == (pytest.approx(fact, abs=1e-6) if isinstance(fact, float) else fact), name


def _difference(name: str, results: Results, recorded: np.ndarray, spec: dict[str, object]) -> str | None:
    """Describes the difference of an output; None if there is none."""
    got = as_array(results.outputs[name])
    if list(got.shape) != spec["shape"]:
        return f"{name}: shape {list(got.shape)}, recorded {spec['shape']}"
    got = sampled(got, spec["stride"])
    if got.shape != recorded.shape:
        return f"{name}: {got.shape} sub-sampled elements, recorded {recorded.shape}"
    apart = np.abs(got.astype(np.float64) - recorded.astype(np.float64))
    fits = apart <= spec["atol"] + spec.get("rtol", 0) * np.abs(recorded.astype(np.float64))
    fits = np.ma.filled(fits, True)  # masked: nothing is said of these
    if fits.all():
        return None
    return f"{name}: {np.sum(~fits)} of {fits.size} differ, by up to {apart.max():.3g}; atol is {spec['atol']}"


def test_weights_follow_from_their_names(component: tuple[Pack, str]) -> None:
    pack, name = component
    assert rule.digest(pack.weights(name)) == pack.json("modules.json")["parameter_sha256"][name]


def test_rule(any_pack: Pack) -> None:
    golden = any_pack.json("modules.json")
    assert golden["rule_check"]
    for check in golden["rule_check"]:
        made = rule.parameter(golden["seed"], check["key"], check["shape"])
        assert made.ravel()[: len(check["first"])].tolist() == check["first"], check["key"]
    assert golden["input_check"]
    for check in golden["input_check"]:
        assert rule.made_input(golden["seed"], check).ravel().tolist() == check["values"], check["key"]
