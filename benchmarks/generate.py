"""Text to video against a straightforward implementation of the published procedure; see README.md beside this file.

python -m benchmarks.generate [--model tiny] [--rounds 3] [--output bench-output]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from videolavit.generation.generate import Video, generate_videos
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder

from .decompose import machine
from .shared import console, result_table, verdict
from .straightforward import Straightforward

VISUAL_TOKENS = 90
"""Of a picture on average (paper); both sides write exactly so many."""

BATCH = 8
GOALS = {1: 1.5, BATCH: 3.0}
LEVELS = 2
"""Most that a pixel of the two sides may differ."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--model", default="tiny", help="model folder or preset")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn, of which the median counts")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "threads": torch.get_num_threads(), "model": options.model}
    result |= measure(ModelFolder(options.model), options.rounds)
    file = options.output / f"generate-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {file}")


def measure(model: ModelFolder, rounds: int) -> dict[str, Any]:
    """Seconds of each side for one prompt and for a batch, after their results were found equal."""
    settings = GenerateSettings(temperature=0.0, min_visual=VISUAL_TOKENS, max_visual=VISUAL_TOKENS)
    prompts = [Prompt((f"a red ball rolls to the left, number {index}",), index) for index in range(BATCH)]
    runtime = Runtime(model)
    sides: dict[str, Callable[[Sequence[Prompt]], list[Video]]] = {
        "ours": lambda chosen: generate_videos(runtime, chosen, 1, settings),
        "straightforward": _one_by_one(Straightforward(model, cached=False), settings),
        "with a cache": _one_by_one(Straightforward(model, cached=True), settings),
    }
    difference = max(_compare(sides["ours"](prompts[:2]), side(prompts[:2])) for side in sides.values())
    table = result_table(f"text to video, {model.location}", "prompts", *sides, "ratio", "ratio, with a cache")
    result: dict[str, Any] = {"largest_pixel_difference": difference, "seconds": {}}
    for number in GOALS:
        seconds = _seconds(sides, prompts[:number], rounds)
        result["seconds"][number] = seconds
        ratios = [median(seconds[name]) / median(seconds["ours"]) for name in list(sides)[1:]]
        table.add_row(str(number), *(f"{median(seconds[name]):.2f} s" for name in sides), *(f"{r:.2f}" for r in ratios))
    console.print(table)
    for number, goal in GOALS.items():
        seconds = result["seconds"][number]
        ratio = median(seconds["straightforward"]) / median(seconds["ours"])
        verdict(f"speed-up, {number} prompt(s)", ratio, goal, at_least=True)
    return result


def _one_by_one(side: Straightforward, settings: GenerateSettings) -> Callable[[Sequence[Prompt]], list[Video]]:
    return lambda chosen: [side.generate_video(prompt, settings) for prompt in chosen]


def _seconds(
    sides: dict[str, Callable[[Sequence[Prompt]], list[Video]]], prompts: Sequence[Prompt], rounds: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.monotonic()
            side(prompts)
            seconds[name].append(time.monotonic() - started)
    return seconds


def _compare(ours: list[Video], theirs: list[Video]) -> int:
    """The largest difference of a pixel. Raises AssertionError if the codes differ: then the times compare nothing."""
    for one, other in zip(ours, theirs, strict=True):
        if one.visual != other.visual or one.motion != other.motion:
            raise AssertionError("the two sides write different codes")
    differences = [
        int(np.abs(one.frames.astype(int) - other.frames).max()) for one, other in zip(ours, theirs, strict=True)
    ]
    if max(differences) > LEVELS:
        raise AssertionError(f"the two sides differ by {max(differences)} levels")
    return max(differences)


if __name__ == "__main__":
    main()
