"""Metrics of a run: to the console, to `metrics.jsonl`, and to trackers."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from .data import DataError

METRICS = "metrics.jsonl"

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
"""Of GPUs by a part of their names: dense bfloat16 (float16 where there is none), as their makers state."""

Record = dict[str, Any]
Line = Callable[[str], None]


class Tracker(Protocol):
    """Takes scalar metrics of steps."""

    def add(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def peak_flops(device: torch.device, known: float | None) -> float | None:
    """Floating-point operations a second of a device at most; None if nobody knows."""
    if known is not None or device.type != "cuda":
        return known
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process had on the device so far; of the process itself on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Telemetry:
    """Writes the metrics of a run, on the first rank.

    Args:
        folder: Of the run.
        trackers: Names of trackers, or ready ones.
        line: Prints a line for people.
        facts: Settings, for trackers that show them.
        step: Where the run continues: later lines of an earlier start are removed, for they will come again.
    """

    def __init__(
        self, folder: Path, trackers: Sequence[str | Tracker], line: Line, facts: Record, step: int, steps: int
    ) -> None:
        self._line, self._steps = line, steps
        self._file = folder / METRICS
        _keep_until(self._file, step)
        self._trackers = [_tracker(one, folder, facts, step) if isinstance(one, str) else one for one in trackers]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics after so many steps."""
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.add(step, values)
        self._line(_readable(step, self._steps, values))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


_SHOWN = (
    ("lr", "lr {:.2g}"),
    ("grad_norm", "norm {:.2f}"),
    ("samples_per_second", "{:,.1f} samples/s"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait", "wait {:.1%}"),
    ("packing", "packed {:.0%}"),
)


def _readable(step: int, steps: int, values: dict[str, float]) -> str:
    names = [name for name in values if name.startswith(("loss", "validation/loss")) or name.endswith("psnr")]
    parts = [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in names]
    parts += [form.format(values[name]) for name, form in _SHOWN if name in values]
    codebooks = [name for name in values if name.endswith("perplexity")]
    parts += [f"{name.replace('_', ' ')} {values[name]:.0f}" for name in codebooks]
    return f"step {step:>{len(str(steps))}}/{steps}  " + "  ".join(parts)


def _keep_until(file: Path, step: int) -> None:
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            kept += [line] if json.loads(line)["step"] <= step else []
        except (ValueError, KeyError):
            continue  # the last line of a run that was killed
    file.write_text("".join(f"{line}\n" for line in kept))


def _tracker(name: str, folder: Path, facts: Record, step: int) -> Tracker:
    kinds: dict[str, Callable[[Path, Record, int], Tracker]] = {
        "tensorboard": TensorBoard,
        "mlflow": MLflow,
        "wandb": WeightsAndBiases,
    }
    try:
        return kinds[name](folder, facts, step)
    except ImportError:
        raise DataError(
            f"the tracker {name} is not installed: pip install {name}, or leave it out of --trackers"
        ) from None


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, facts: Record, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run where `MLFLOW_TRACKING_URI` says; its id is kept in the folder, so that a restart goes on with it."""

    def __init__(self, folder: Path, facts: Record, step: int) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        known = folder / "mlflow-run"
        earlier = known.read_text() if known.exists() else None
        run = self._mlflow.start_run(run_id=earlier, run_name=folder.name)
        known.write_text(run.info.run_id)
        if earlier is None:
            self._mlflow.log_params({name: str(value)[:500] for name, value in facts.items()})

    def add(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics({name.replace("@", "_"): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project that `WANDB_PROJECT` names; its id is kept in the folder."""

    def __init__(self, folder: Path, facts: Record, step: int) -> None:
        wandb: Any = importlib.import_module("wandb")
        known = folder / "wandb-run"
        earlier = known.read_text() if known.exists() else None
        self._run = wandb.init(dir=str(folder), name=folder.name, id=earlier, resume="allow", config=facts)
        known.write_text(self._run.id)

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
