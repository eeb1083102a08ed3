"""Training the language model against a bare PyTorch loop; see README.md beside this file.

python -m benchmarks.train [--model tiny] [--steps 60] [--rounds 3] [--output bench-output]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from videolavit.models.folder import ModelFolder
from videolavit.models.objective import Draws
from videolavit.records import schema
from videolavit.records.encode import read_tokenizers
from videolavit.records.shards import TOKEN_SHARDS, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.parallel import Ranks
from videolavit.training.run import TrainTask, train_rank
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

from .decompose import machine
from .shared import console, fresh_folder, local_ray, result_table, verdict

GOALS = {"trainer": 0.97, "ray": 0.95, "packing": 1.5}
CHECKPOINT_GOAL = 0.02
SETTINGS = LanguageModelTraining(sequence_length=1024, pack_over=256, other_lr_scale=1.0)
WARM_UP = 5
"""Steps at the start that are not measured."""

SAVE_EVERY = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--model", default="tiny", help="model folder or preset")
    parser.add_argument("--steps", type=int, default=60, help="measured steps of a round")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each side, in turn, of which the median counts"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with fresh_folder(output, "train") as folder:
        tokens = _write_tokens(Path(folder) / "tokens", ModelFolder(options.model))
        result = {"machine": machine(), "model": options.model}
        result |= measure(options.model, tokens, Path(folder), options.steps, options.rounds)
    file = output / f"train-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {options.output / file.name}")


def measure(model: str, tokens: Path, output: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Useful tokens a second of every side, after the losses of the first two were found equal."""
    task = TrainTask(
        component="language-model",
        model=model,
        inputs=TrainInputs(train=[str(tokens)]),
        objective=SETTINGS,
        settings=TrainSettings(
            steps=WARM_UP + steps,
            batch=4,
            micro_batch=4,
            log_every=WARM_UP,
            save_every=10**9,
            trackers=(),
            optimizer=OptimizerSettings(lr=1e-3),
        ),
        output="",
    )
    padded = replace(
        task, objective=replace(SETTINGS, packing=False), settings=replace(task.settings, batch=16, micro_batch=16)
    )
    sides: dict[str, Callable[[Path], tuple[float, list[float]]]] = {
        "bare": lambda folder: _bare(task),
        "trainer": lambda folder: _ours(replace(task, output=str(folder)), _here),
        "ray": lambda folder: _ours(replace(task, output=str(folder)), _on_ray),
        "padded": lambda folder: _ours(replace(padded, output=str(folder)), _here),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {}
    with local_ray():
        for number in range(rounds):
            for name, side in sides.items():
                speed, losses[name] = side(output / f"{name}-{number}")
                speeds[name].append(speed)
                console.print(f"round {number + 1} {name}: {speed:,.0f} tokens/s")
    np.testing.assert_allclose(losses["bare"], losses["trainer"], rtol=1e-4)
    np.testing.assert_allclose(losses["bare"], losses["ray"], rtol=1e-4)
    saving = _saving(task, output)
    return _summary(speeds, saving)


def _summary(speeds: dict[str, list[float]], saving: dict[str, float]) -> dict[str, Any]:
    middle = {name: median(values) for name, values in speeds.items()}
    table = result_table("Useful tokens a second", "side", *[f"round {n + 1}" for n in range(len(speeds["bare"]))])
    for name, values in speeds.items():
        table.add_row(name, *[f"{value:,.0f}" for value in values])
    console.print(table)
    shares = {name: middle[name] / middle["bare"] for name in ("trainer", "ray")}
    shares["packing"] = middle["trainer"] / middle["padded"]
    verdict("the trainer, of a bare loop", shares["trainer"], GOALS["trainer"], at_least=True)
    verdict("through Ray Train, of a bare loop", shares["ray"], GOALS["ray"], at_least=True)
    verdict("packed, of padded to the longest", shares["packing"], GOALS["packing"], at_least=True)
    verdict(f"one save in {SAVE_EVERY} steps, of wall time", saving["share"], CHECKPOINT_GOAL, at_least=False)
    return {"tokens_per_second": speeds, "shares": shares, "saving": saving}


def _bare(task: TrainTask) -> tuple[float, list[float]]:
    """Trains on the same batches, loaded beforehand, in a minimal loop."""
    component = task.objective.build(ModelFolder(task.model), task.inputs)
    objective = component.objective.train()
    batches = []
    for _ in range(task.settings.steps):
        items = component.stream.take(task.settings.batch)
        batches.append(component.collate(items, [item.load() for item in items]))
    parameters = [value for value in objective.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": 0.001},
        {"params": [value for value in parameters if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.settings.steps - 1)
    losses, started = [], 0.0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            started = time.perf_counter()
        sums = objective(batch.inputs, Draws(0, batch.positions))
        loss = sums["loss"] / batch.counts["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append((float(sums["loss"].detach()), batch.counts["loss"]))
    seconds = time.perf_counter() - started
    useful = sum(sum(batch.tokens.values()) for batch in batches[WARM_UP:])
    chunks = [np.array(losses[start : start + WARM_UP]).sum(0) for start in range(0, len(losses), WARM_UP)]
    return useful / seconds, [float(total / count) for total, count in chunks]


def _ours(task: TrainTask, run: Callable[[TrainTask], None]) -> tuple[float, list[float]]:
    run(task)
    lines = [json.loads(line) for line in (Path(task.output) / "metrics.jsonl").read_text().splitlines()]
    measured = lines[1:]
    seconds = sum(WARM_UP * one["step_seconds"] for one in measured)
    useful = sum(one["tokens_per_second"] * WARM_UP * one["step_seconds"] for one in measured)
    waits = [one["data_wait"] for one in measured]
    console.print(f"  waiting for data: {np.mean(waits):.2%}")
    return useful / seconds, [one["loss"] for one in lines]


def _here(task: TrainTask) -> None:
    train_rank(task, Ranks.here("cpu"))


def _on_ray(task: TrainTask) -> None:
    from pipelines.train import ClusterSettings, train

    train(
        task.component,
        task.model,
        task.inputs,
        task.output,
        objective=task.objective,
        settings=task.settings,
        cluster=ClusterSettings(workers=1, cpus_per_worker=2),
    )


def _saving(task: TrainTask, output: Path) -> dict[str, float]:
    """Wall time of a long run with and without a save in the middle, each the best of two."""
    steps = SAVE_EVERY + SAVE_EVERY // 2
    times: dict[str, list[float]] = {"with": [], "without": []}
    for number, (name, every) in _in_turn({"without": 10**9, "with": SAVE_EVERY}):
        settings = replace(task.settings, steps=steps, save_every=every, log_every=steps)
        folder = output / f"saving-{name}-{number}"
        train_rank(replace(task, settings=settings, output=str(folder)), Ranks.here("cpu"))
        (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        times[name].append(line["step_seconds"] * steps)
    best = {name: min(values) for name, values in times.items()}
    return best | {"share": (best["with"] - best["without"]) / (best["without"] / steps * SAVE_EVERY)}


def _in_turn(sides: dict[str, int]) -> Iterator[tuple[int, tuple[str, int]]]:
    for number in range(2):
        for side in sides.items():
            yield number, side


def _write_tokens(folder: Path, model: ModelFolder) -> Path:
    """Captioned videos of one to four clips, images and texts, of the lengths that real ones have."""
    rng, of = np.random.default_rng(0), model.vocabulary

    def codes(number: int, size: int) -> list[int]:
        return [int(code) for code in rng.integers(0, size, number)]

    rows = []
    for index in range(600):
        kind = ("video", "video", "image", "text")[index % 4]
        clips = {"video": int(rng.integers(1, 5)), "image": 1, "text": 0}[kind]
        pairs = [
            {
                "visual_tokens": codes(int(rng.integers(10, model.num_patches // 2)), of.visual_codes),
                "motion_tokens": codes(model.motion_tokens if kind == "video" else 0, of.motion_codes),
            }
            for _ in range(clips)
        ]
        letters = int(rng.integers(20, 90)) if clips else int(rng.integers(60, 900))
        rows.append(
            {
                "sample_id": str(index),
                "modality": kind,
                "source": "benchmark",
                "text": "".join(rng.choice(list("abcdefgh "), letters)),
                "start_seconds": 0.0,
                "end_seconds": 4.0 * clips,
                "clips": pairs,
                "num_tokens": sum(len(one["visual_tokens"]) + len(one["motion_tokens"]) for one in pairs),
            }
        )
    target = Folder(str(folder), StorageSettings())
    metadata = read_tokenizers(model.location).metadata()
    with ShardWriter(target, "benchmark.parquet", [], TOKEN_SHARDS, metadata) as writer:
        writer.add(pa.Table.from_pylist(rows, schema=schema.TOKENS))
        writer.commit()
    return folder


if __name__ == "__main__":
    main()
