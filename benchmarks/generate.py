"""Text to video, compared with a straightforward implementation of the published procedure; see README.md here.

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

from videolavit.generation.generate import generate_videos
from videolavit.generation.program import GeneratedVideo
from videolavit.generation.prompts import Prompt
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings
from videolavit.models.folder import ModelFolder
from videolavit.progress import Progress

from .decompose import machine
from .shared import console, result_table, verdict
from .straightforward import Straightforward

VISUAL_TOKENS = 90 / 256
"""Average number of visual codes of a picture, as a share of its patches (paper); both sides generate exactly that."""

Side = Callable[[Sequence[Prompt]], tuple[list[GeneratedVideo], float]]
"""Function that generates videos, and returns them with the seconds that their tokens took."""

BATCH = 8
GOALS = {1: 1.5, BATCH: 3.0}
LEVELS = 2
"""Largest difference of a pixel between the two sides."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--model", default="tiny", help="model folder or preset")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, alternating; the median counts")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "threads": torch.get_num_threads(), "model": options.model}
    result |= measure(ModelFolder(options.model), options.rounds)
    file = options.output / f"generate-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {file}")


def measure(model: ModelFolder, rounds: int) -> dict[str, Any]:
    """Measures the seconds of each side for one prompt and for a batch, after checking that their results agree."""
    codes = round(VISUAL_TOKENS * model.num_patches)
    settings = GenerateSettings(temperature=0.0, min_visual=codes, max_visual=codes)
    prompts = [Prompt((f"a red ball rolls to the left, number {index}",), index) for index in range(BATCH)]
    sides: dict[str, Side] = {
        "ours": _ours(Runtime(model), settings),
        "straightforward": _one_by_one(Straightforward(model, cached=False), settings),
        "with a cache": _one_by_one(Straightforward(model, cached=True), settings),
    }
    difference = max(_compare(sides["ours"](prompts[:2])[0], side(prompts[:2])[0]) for side in sides.values())
    table = result_table(f"text to video, {model.location}", "prompts", *sides, "ratio", "ratio, with a cache")
    result: dict[str, Any] = {"largest_pixel_difference": difference, "seconds": {}, "token_seconds": {}}
    for number, goal in GOALS.items():
        times = _seconds(sides, prompts[:number], rounds)
        for place, what in enumerate(("seconds", "token_seconds")):
            seconds = {name: [run[place] for run in runs] for name, runs in times.items()}
            result[what][number] = seconds
            middle = [median(seconds[name]) for name in sides]
            label = f"{number}, tokens alone" if place else str(number)
            table.add_row(label, *(f"{one:.2f} s" for one in middle), *(f"{one / middle[0]:.2f}" for one in middle[1:]))
            if not place:
                verdict(f"speed-up, {number} prompt(s)", middle[1] / middle[0], goal, at_least=True)
    console.print(table)
    return result


def _ours(runtime: Runtime, settings: GenerateSettings) -> Side:
    def run(prompts: Sequence[Prompt]) -> tuple[list[GeneratedVideo], float]:
        started = tokens_done = time.monotonic()

        def on_progress(progress: Progress) -> None:
            nonlocal tokens_done
            if progress.stage.endswith("tokens"):
                tokens_done = time.monotonic()

        return generate_videos(runtime, prompts, 1, settings, on_progress), tokens_done - started

    return run


def _one_by_one(side: Straightforward, settings: GenerateSettings) -> Side:
    def run(prompts: Sequence[Prompt]) -> tuple[list[GeneratedVideo], float]:
        side.token_seconds = 0.0
        return [side.generate_video(prompt, settings) for prompt in prompts], side.token_seconds

    return run


def _seconds(sides: dict[str, Side], prompts: Sequence[Prompt], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each run of each side: in all, and for the tokens."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.monotonic()
            _, tokens = side(prompts)
            seconds[name].append((time.monotonic() - started, tokens))
    return seconds


def _compare(ours: list[GeneratedVideo], theirs: list[GeneratedVideo]) -> int:
    """The largest difference of a pixel. Raises AssertionError if the codes differ: then the times compare nothing."""
    for one, other in zip(ours, theirs, strict=True):
        if one.visual != other.visual or one.motion != other.motion:
            raise AssertionError("the two sides generate different codes")
    differences = [
        int(np.abs(one.frames.astype(int) - other.frames).max()) for one, other in zip(ours, theirs, strict=True)
    ]
    if max(differences) > LEVELS:
        raise AssertionError(f"the two sides differ by {max(differences)} levels")
    return max(differences)


if __name__ == "__main__":
    main()
