"""Model FLOPs utilisation of training the language model on one device; see README.md beside this file.

python -m benchmarks.utilisation [--model video-lavit-7b] [--layers 4] [--rows 8] [--steps 30] [--output bench-output]

On a GPU it takes some minutes. Elsewhere, as with `--model tiny --rows 1 --steps 5`, it measures tokens a second only,
and nothing compiled.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from videolavit.models.language_model.flops import Flops
from videolavit.models.language_model.objective import NextToken
from videolavit.models.presets import load_preset
from videolavit.training.component import Component
from videolavit.training.metrics import peak_flops
from videolavit.training.packed import Document, PackedCollate, PackedStream, PackingSettings
from videolavit.training.parallel import Ranks
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainSettings
from videolavit.training.trainer import Trainer
from videolavit.vocabulary import Vocabulary

from .shared import console, result_table, verdict

GOAL = 0.5
LENGTH = 2048
"""Ids of a row, as published."""

WAYS = {
    "eager": ParallelSettings(precision="bfloat16", compile=False),
    "compiled": ParallelSettings(precision="bfloat16", compile=True),
    "compiled, selective recomputation": ParallelSettings(precision="bfloat16", compile=True, recompute="selective"),
}
EVERY = 5
"""Steps between two measurements; the first of them is the warm-up."""


class MadeUp:
    """Documents of random ids, as long as captioned videos of one to six clips of the published sizes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._size = vocabulary.size

    def lengths(self, position: int) -> list[int]:
        rng = np.random.default_rng([0, position])
        clips = int(rng.integers(1, 7))
        return [int(rng.integers(20, 80) + clips * 139 + rng.integers(60, 130, clips).sum())]

    def source(self, position: int) -> str:
        return "random"

    def load(self, position: int, index: int) -> Document:
        (length,) = self.lengths(position)
        return Document(np.random.default_rng([1, position]).integers(0, self._size, length), "random")


class Enough(Exception):
    """All that is measured has been."""


class Stopwatch:
    """A tracker that ends the run, in place of its last checkpoint."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines: list[dict[str, float]] = []

    def add(self, step: int, values: dict[str, float]) -> None:
        self.lines.append(dict(values))
        if step >= self.steps:
            raise Enough

    def close(self) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utilisation", description=__doc__)
    parser.add_argument("--model", default="video-lavit-7b", help="preset whose width is taken")
    parser.add_argument("--layers", type=int, default=4, help="blocks, of the preset's width")
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {LENGTH} ids a step")
    parser.add_argument("--steps", type=int, default=30, help="measured steps of each way")
    parser.add_argument("--peak-flops", type=float, help="peak of the device in FLOP/s, if no table has it")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    ranks = Ranks.here()
    peak = peak_flops(ranks.device, options.peak_flops)
    on_gpu = ranks.device.type == "cuda"
    if peak is None and on_gpu:
        parser.error(f"the peak of {ranks.device} is not known: give --peak-flops")
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    settings = TrainSettings(
        steps=10**6,
        batch=options.rows,
        micro_batch=options.rows,
        log_every=EVERY,
        save_every=10**6,
        trackers=(),
        peak_flops=peak,
        optimizer=OptimizerSettings(lr=1e-4, betas=(0.9, 0.95)),
    )
    found = {}
    for way, parallel in WAYS.items():
        if not on_gpu and parallel.compile:
            continue
        gc.collect()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        lines = _run(options.model, options.layers, replace(settings, parallel=parallel), ranks, options.steps)
        measured = [key for key in ("mfu", "tokens_per_second", "data_wait") if key in lines[0]]
        found[way] = {key: median(line[key] for line in lines) for key in measured}
        found[way]["memory_gb"] = lines[-1]["memory_gb"]
    table = result_table(f"{options.layers} layers as {options.model}, {name}", "way", "MFU", "tokens/s", "wait", "GB")
    for way, one in found.items():
        share = f"{one['mfu']:.1%}" if "mfu" in one else "no peak known"
        cells = (share, f"{one['tokens_per_second']:,.0f}", f"{one['data_wait']:.2%}")
        table.add_row(way, *cells, f"{one['memory_gb']:.1f}")
    console.print(table)
    for way, one in found.items() if peak else ():
        verdict(f"utilisation, {way}", one["mfu"], GOAL, at_least=True)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"utilisation-{time.strftime('%Y%m%dT%H%M%S')}.json"
    asked = {"model": options.model, "layers": options.layers, "rows": options.rows, "steps": options.steps}
    file.write_text(json.dumps({"device": name, "torch": torch.__version__, **asked, "ways": found}, indent=1) + "\n")
    console.print(f"numbers: {file}")


def _run(model: str, layers: int, settings: TrainSettings, ranks: Ranks, steps: int) -> list[dict[str, float]]:
    """Metrics of each measurement, without the warm-up."""
    watch = Stopwatch(EVERY + steps)
    with tempfile.TemporaryDirectory() as folder:
        try:
            component = _component(model, layers, ranks.device)
            Trainer(component, settings, ranks, Path(folder), trackers=[watch]).run()
        except Enough:
            return watch.lines[1:]
    raise AssertionError("the stopwatch ends the run")


def _component(model: str, layers: int, device: torch.device) -> Component:
    from transformers import LlamaForCausalLM

    preset = load_preset(model)
    vocabulary = preset.vocabulary
    config = replace(preset.language_model, num_layers=layers, max_positions=LENGTH).llama(vocabulary.size)
    with torch.device(device):
        network = LlamaForCausalLM(config)
    return Component(
        objective=NextToken(network.train()),
        stream=PackedStream(MadeUp(vocabulary), PackingSettings(LENGTH)),
        collate=PackedCollate(vocabulary, Flops.of(network), LENGTH),
        tokens_per_item=LENGTH,
    )


if __name__ == "__main__":
    main()
