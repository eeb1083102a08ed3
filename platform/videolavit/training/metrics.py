"""Metrics of a run: what is measured between two log lines, where it goes, and how it is drawn."""

import contextlib
import importlib
import json
import math
import os
import secrets
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from videolavit.files import write_beside
from videolavit.records.storage import Folder

from .data import DataError
from .loader import StepData
from .parallel import Ranks

METRICS = "metrics.jsonl"

SOURCE_LOSS = "source_loss/"
"""Beginning of the names of metrics of the loss of each source."""

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10G": 70e12,
    "L4": 121e12,
    "V100": 125e12,
    "4090": 165e12,
}
"""Peak floating-point operations per second of GPUs, by a part of their names: dense bfloat16 (float16 where there is
no bfloat16), as published by the vendors."""


class Tracker(Protocol):
    """Destination of scalar metrics."""

    def add(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


# ---- measuring ----------------------------------------------------------------------------------------------------


@dataclass
class Interval:
    """Measurements between two log lines, on one rank."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    grad_norm: Tensor | float = 0.0
    sums: list[dict[str, Tensor]] = field(default_factory=list)
    counts: list[dict[str, float]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    losses: list[tuple[list[str], Tensor]] = field(default_factory=list)  # sources of samples, and their losses
    work: dict[str, float] = field(default_factory=lambda: {"samples": 0.0, "size": 0.0, "flops": 0.0})

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def add(self, data: StepData, grad_norm: Tensor | None) -> None:
        """Adds a step; the norm is None for one without data."""
        self.steps += 1
        self.grad_norm = self.grad_norm if grad_norm is None else grad_norm
        for batch in data.batches:
            self.counts.append(batch.counts)
            self.tokens.update(batch.tokens)
            work = {"samples": len(batch.positions) * batch.weight, "size": batch.size, "flops": batch.flops}
            for name, value in work.items():
                self.work[name] += value

    def metrics(self, weights: Mapping[str, float], ranks: Ranks, peak: float | None) -> dict[str, float]:
        """Mean loss terms and speed, over the interval and all ranks. Without data there are no terms.

        Args:
            weights: Weights of the terms in the loss.
            peak: Peak floating-point operations per second of a device, for the model FLOPs utilisation.
        """
        seconds = self.seconds
        sums = ranks.sums(sum_values([{name: float(value) for name, value in part.items()} for part in self.sums]))
        work = ranks.sums(self.work)
        tokens = sum(ranks.sum_counts(self.tokens).values())
        counts = ranks.sums(sum_values(self.counts))
        metrics: dict[str, float] = {}
        if any(counts.values()):
            means = mean_terms(sums, counts, weights)
            metrics = {**means, "grad_norm": float(self.grad_norm), **self.by_source(ranks)}
        metrics |= {"samples_per_second": work["samples"] / seconds, "step_seconds": seconds / self.steps}
        if work["size"]:  # sequences
            metrics |= {"tokens_per_second": tokens / seconds, "packing": tokens / work["size"]}
        if peak and work["flops"]:
            metrics["mfu"] = work["flops"] / seconds / (peak * ranks.world)
        return metrics

    def by_source(self, ranks: Ranks) -> dict[str, float]:
        """Mean loss of each source, over the interval and all ranks."""
        sums: dict[str, float] = defaultdict(float)
        numbers: dict[str, float] = defaultdict(float)
        for sources, losses in self.losses:
            for source, (loss, number) in zip(sources, losses.tolist(), strict=True):
                if number:
                    sums[source] += loss
                    numbers[source] += number
        sums, numbers = ranks.sum_counts(sums), ranks.sum_counts(numbers)
        return {f"{SOURCE_LOSS}{source}": sums[source] / number for source, number in numbers.items()}


def mean_terms(sums: dict[str, float], counts: dict[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Loss, and the mean of each of its terms."""
    means = {term: total / max(counts[term], 1.0) for term, total in sums.items()}
    return {"loss": sum(weight * means[term] for term, weight in weights.items())} | means


def sum_values(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sums of the values of each name; all parts have the same names."""
    return {name: math.fsum(part[name] for part in parts) for name in sorted(parts[0])} if parts else {}


def peak_flops(device: torch.device, known: float | None) -> float | None:
    """Peak floating-point operations per second of a device; None if it is not known."""
    if known is not None or device.type != "cuda":
        return known
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process on the device so far, in bytes; on a CPU, of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- writing ------------------------------------------------------------------------------------------------------


class MetricsLog:
    """Writes the metrics of a run to `metrics.jsonl` and to trackers. One rank has it.

    Args:
        folder: Folder of the run.
        trackers: Names of trackers, or trackers.
        config: Settings of the run, for trackers that show them.
        step: Step from which the run continues. Later lines of an earlier start are removed: they are written again.
    """

    def __init__(self, folder: Path, trackers: Sequence[str | Tracker], config: dict[str, Any], step: int) -> None:
        self._file = folder / METRICS
        keep_lines(self._file, step)
        self._trackers: list[Tracker] = []
        for tracker in trackers:
            if not isinstance(tracker, str):
                self._trackers.append(tracker)
                continue
            try:
                self._trackers.append(_TRACKERS[tracker](folder, config, step))
            except ImportError:
                raise DataError(
                    f"the tracker {tracker} is not installed: pip install {tracker}, or leave it out of the trackers"
                ) from None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes metrics of a step."""
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.add(step, values)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def logged_at(folder: Folder, step: int) -> dict[str, float]:
    """Metrics that a run logged at a step; empty if it logged none, or went back behind it."""
    found: dict[str, Any] = {}
    for line in (folder.read(METRICS) or b"").decode().splitlines(keepends=True):
        if line.endswith("\n") and (values := json.loads(line)).get("step") == step:
            found |= values
    return {name: value for name, value in found.items() if name != "step"}


def keep_lines(file: Path, step: int) -> None:
    """Removes from a file of JSON lines, if there is one, those of the steps after one, and what is no whole line: the
    last one of a run that was killed, or whose disk was full."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            kept += [line] if json.loads(line)["step"] <= step else []
    with write_beside(file) as (unfinished,):
        unfinished.write_text("".join(f"{line}\n" for line in kept))


_FORMATS = (
    ("lr", "lr {:.2g}"),
    ("grad_norm", "norm {:.2f}"),
    ("samples_per_second", "{:,.1f} samples/s"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait", "wait {:.1%}"),
    ("packing", "packed {:.0%}"),
)


def log_line(step: int, steps: int, values: dict[str, float]) -> str:
    """Metrics of a step as a line for people."""
    names = [name for name in values if name.startswith(("loss", "validation/loss")) or name.endswith("psnr")]
    parts = [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in names]
    parts += [form.format(values[name]) for name, form in _FORMATS if name in values]
    codebooks = [name for name in values if name.endswith("perplexity")]
    parts += [f"{name.replace('_', ' ')} {values[name]:.0f}" for name in codebooks]
    return f"step {step:>{len(str(steps))}}/{steps}  " + "  ".join(parts)


class TensorBoard:
    """Event files in `tensorboard/`.

    The caller's thread writes them: in one of its own, a full disk or a folder that is gone would raise unseen.
    """

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        place = folder / "tensorboard"
        place.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        # without a buffer, which would be written again at the end of the process if the disk is full
        self._writer = RecordWriter((place / name).open("ab", buffering=0))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))  # replaces what came after

    def add(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        of_step = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=of_step))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


class MLflow:
    """A run at `MLFLOW_TRACKING_URI`. Its id is kept in the folder, so that a resumed run continues it."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        known = folder / "mlflow-run"
        earlier = known.read_text() if known.exists() else None
        run = self._mlflow.start_run(run_id=earlier, run_name=folder.name)
        known.write_text(run.info.run_id)
        if earlier is None:
            self._mlflow.log_params({name: str(value)[:500] for name, value in config.items()})

    def add(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("@", "_"): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project `WANDB_PROJECT`. Its id is kept in the folder, so that a resumed run continues it."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int) -> None:
        wandb: Any = importlib.import_module("wandb")
        known = folder / "wandb-run"
        earlier = known.read_text() if known.exists() else None
        self._run = wandb.init(dir=str(folder), name=folder.name, id=earlier, resume="allow", config=config)
        known.write_text(self._run.id)

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[Path, dict[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


# ---- reading ------------------------------------------------------------------------------------------------------

CURVES = "curves.png"

_HIDDEN = (
    "step",
    "tokens/",
    SOURCE_LOSS,
    "memory",
    "step_seconds",
    "samples_per_second",
    "tokens_per_second",
    "data_wait",
    "lr",
)
"""Metrics without a curve: those of speed, and those that only grow."""


def draw_curves(folder: Path) -> Path | None:
    """Draws training and validation metrics of a run into `curves.png`.

    Returns:
        Path of the picture; None if no metric was measured more than once.
    """
    from matplotlib.figure import Figure  # importing it takes half a second

    found = read_metrics(folder)
    names = [name for name in found if not name.startswith(("validation/", "samples/", *_HIDDEN))]
    names = [name for name in names if len(found[name]) > 1]
    if not names:
        return None
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for kind, label in ((name, "training"), (f"validation/{name}", "validation")):
            if kind in found:
                steps, values = zip(*found[kind], strict=True)
                axes.plot(steps, values, label=label, marker="." if len(steps) < 30 else None, linewidth=1)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if f"validation/{name}" in found:
            axes.legend(fontsize=7)
    with write_beside(folder / CURVES) as (unfinished,):
        figure.savefig(unfinished, dpi=110)
    return folder / CURVES


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs of every metric of a run, by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / METRICS).read_text().splitlines():
        values = json.loads(line)
        for name, value in values.items():
            found.setdefault(name, []).append((values["step"], value))
    return found
