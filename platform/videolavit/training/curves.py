"""The curves of a run as a picture."""

import json
from pathlib import Path

from .telemetry import METRICS

CURVES = "curves.png"

_HIDDEN = ("step", "tokens/", "memory", "step_seconds", "samples_per_second", "tokens_per_second", "data_wait", "lr")
"""Metrics of speed, and those that only grow; they are in the trackers."""


def draw_curves(folder: Path) -> Path | None:
    """Draws the metrics of a run's folder into `curves.png`, those of validation beside those of training.

    Returns:
        The picture; None if nothing was measured more than once.
    """
    from matplotlib.figure import Figure  # half a second, and only here

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
    figure.savefig(folder / CURVES, dpi=110)
    return folder / CURVES


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric of a run's folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / METRICS).read_text().splitlines():
        values = json.loads(line)
        for name, value in values.items():
            found.setdefault(name, []).append((values["step"], value))
    return found
