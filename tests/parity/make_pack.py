"""Records the project's own pack: `python -m tests.parity.make_pack [FOLDER]`.

Its numbers are what this code gave when it agreed with the shared pack. They hold it to that where the shared pack is
absent, and at other sizes; they prove nothing about the reference.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity import own_modules, rule
from tests.parity.pack import OWN, Module, Pack
from tests.parity.results import as_array, sampled
from tests.parity.test_modules import compute
from videolavit.models import published

RTOL = 1e-4
MOST_ELEMENTS = 120
"""Recorded of an output, about."""

CHECKED_KEYS = {
    "encoder.norm.weight": [6],
    "encoder.norm.bias": [6],
    "encoder.pos_embed": [1, 4, 3],
    "conv_in.weight": [4, 2, 3, 3],
    "down_blocks.0.resnets.0.time_mixer.mix_factor": [1],
    "scalar": [],
}
CHECKED_INPUTS = [
    {"key": "input:example/x", "shape": [3], "kind": "normal", "scale": 0.7},
    {"key": "input:example/u", "shape": [6], "kind": "integers", "low": 0, "high": 256, "dtype": "uint8"},
]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    definition = own_modules.modules()
    state_dicts = {
        f"{name}/{component}": shapes(component, words)
        for name, module in definition.items()
        for component, words in module["components"].items()
    }
    (folder / "state_dicts.json").write_text(lines(state_dicts, 1) + "\n")
    specs = {name: begin(folder, name, module) for name, module in definition.items()}
    golden = {
        "seed": own_modules.SEED,
        **checks(),
        "parameter_sha256": {
            name: rule.digest(rule.parameters(own_modules.SEED, state)) for name, state in state_dicts.items()
        },
        "modules": specs,
    }
    write(folder, golden)
    pack = Pack(folder)
    for name, spec in specs.items():
        record(folder, pack, name, spec)
        print(name, json.dumps(spec["facts"]))
    write(folder, golden)


def shapes(component: str, words: dict[str, Any]) -> dict[str, list[int]]:
    """Returns the shapes of a component's tensors under their published names."""
    if component == "codebook":
        return {published.CODEBOOK: [words["n_code"], words["code_dim"]]}
    state = published.published_state(component, published.empty_module(component, words))
    return {key: list(tensor.shape) for key, tensor in state.items()}


def checks() -> dict[str, Any]:
    made = {key: rule.parameter(own_modules.SEED, key, shape).ravel() for key, shape in CHECKED_KEYS.items()}
    return {
        "rule_check": [
            {"key": key, "shape": shape, "first": made[key][:4].tolist()} for key, shape in CHECKED_KEYS.items()
        ],
        "input_check": [spec | {"values": rule.made_input(own_modules.SEED, spec).tolist()} for spec in CHECKED_INPUTS],
    }


def begin(folder: Path, name: str, module: dict[str, Any]) -> dict[str, Any]:
    """Returns a module's entry in `modules.json` without its outputs, and writes the inputs that are stored."""
    inputs, arrays = {}, {}
    for key, given in module["inputs"].items():
        if isinstance(given, np.ndarray):
            arrays[f"in.{key}"] = given
            inputs[key] = {"kind": "stored", "key": f"in.{key}", "shape": list(given.shape), "dtype": str(given.dtype)}
        else:
            inputs[key] = given if given["kind"] == "formula" else given | {"key": f"input:{name}/{key}"}
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    components = [f"{name}/{component}" for component in module["components"]]
    return {"config": module["config"], "state_dicts": components, "inputs": inputs, "outputs": {}, "facts": {}}


def record(folder: Path, pack: Pack, name: str, spec: dict[str, Any]) -> None:
    """Adds a module's outputs to its arrays and its description."""
    torch.set_num_threads(2)
    results = compute(Module(pack, name))
    exact = compute(Module(pack, name, torch.float64)).outputs
    torch.set_num_threads(1)
    alone = compute(Module(pack, name)).outputs
    arrays, outputs = pack.arrays(f"{name}.npz"), {}
    for key, output in results.outputs.items():
        got = plain(output)
        outputs[key] = describe(got, plain(alone[key]), plain(exact[key]))
        arrays[f"out.{key}"] = sampled(got, outputs[key]["stride"])
    spec |= {"outputs": outputs, "facts": results.facts}
    np.savez_compressed(folder / f"{name}.npz", **arrays)


def plain(output: Any) -> np.ndarray:
    array = np.ma.filled(as_array(output), 0)
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def describe(got: np.ndarray, alone: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Shape, stride and tolerance of an output, as the README of the shared pack says."""
    threads, precision = (float(np.abs(got.astype(np.float64) - other).max(initial=0)) for other in (alone, exact))
    facts = {"shape": list(got.shape), "dtype": str(got.dtype), "stride": stride(got.size)}
    facts |= {"diff_threads": _short(threads), "diff_float64": _short(precision)}
    if got.dtype.kind != "f":
        picture = got.dtype == np.uint8 and got.shape[-1:] == (3,)
        assert picture or not precision, "a choice that float32 is too coarse for; take another seed"
        return facts | {"atol": 2 if picture else 0}
    rms = float(np.sqrt(np.mean(np.square(got, dtype=np.float64))))
    return facts | {"rms": _short(rms), "atol": _round_up(max(20 * threads, 20 * precision, 2e-5 * rms)), "rtol": RTOL}


def stride(size: int) -> int:
    """A prime that does not divide the size, so that every axis is visited; 1 for small outputs."""
    if size <= MOST_ELEMENTS:
        return 1
    step = -(-size // MOST_ELEMENTS)
    while not _is_prime(step) or size % step == 0:
        step += 1
    return step


def write(folder: Path, golden: dict[str, Any]) -> None:
    (folder / "modules.json").write_text(lines(golden, 4) + "\n")


def lines(value: Any, depth: int, indent: int = 1) -> str:
    """JSON with a line for each key down to a depth, which keeps files small and their differences readable."""
    if depth == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, separators=(",", ":"))
    inner = (f"{' ' * indent}{json.dumps(key)}: {lines(one, depth - 1, indent + 1)}" for key, one in value.items())
    return "{\n" + ",\n".join(inner) + "\n" + " " * (indent - 1) + "}"


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = math.floor(math.log10(value)) if value > 0 else -6
    return next(float(f"{digit}e{power}") for digit in (1, 2, 5, 10) if float(f"{digit}e{power}") >= value)


def _short(value: float) -> float:
    return float(f"{value:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OWN)
