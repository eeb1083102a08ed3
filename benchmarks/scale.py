"""Cost of a run beyond its work as a corpus grows: CPU time and memory a sample of each step, on fabricated runs.

Reading headers and making shards is the work of actors, and linear. Here plans are fabricated in place of headers, and
shards without rows in place of work, so that what remains is what the driver does.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from videolavit.records.shards import RUN_FILE
from videolavit.records.storage import Folder, StorageSettings

from .fabricated import STEPS, fabricate_shards, run_step, write_manifest
from .shared import console, result_table

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def forked(function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Calls a function in a process that begins as a copy of this one, with its libraries and nothing else."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(size: int, folder: Path) -> dict[str, dict[str, float]]:
    """Every step of a run of some samples."""
    forked(write_manifest, folder / "manifest.parquet", size)
    Folder(str(folder / "run"), StorageSettings()).replace(RUN_FILE, b'{"identity": {}, "complete": false}')
    found = {}
    for name in STEPS:
        if name == "show the plan":
            forked(fabricate_shards, folder / "run", 2)
        if name == "finish":
            forked(fabricate_shards, folder / "run", 1)
        found[name] = forked(run_step, name, str(folder))
        console.print(f"{size:,} samples: {name}", found[name], style="dim")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measures runs of several sizes and prints what a sample costs in each step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="samples of the runs")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="folder of the JSON file")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[int, dict[str, dict[str, float]]] = {}
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory(prefix="scale-", dir=options.output) as folder:
            results[size] = measure(size, Path(folder))
    (options.output / "scale.json").write_text(json.dumps(results, indent=2) + "\n")
    _print(results)


def _print(results: dict[int, dict[str, dict[str, float]]]) -> None:
    sizes = list(results)
    columns = [f"{unit} at {size:,}" for unit in ("us a sample", "MB") for size in sizes]
    table = result_table("CPU time and memory by step", "step", *columns, "bytes a sample")
    for name in STEPS:
        steps = [results[size][name] for size in sizes]
        times = [f"{step['seconds'] / size * 1e6:.1f}" for step, size in zip(steps, sizes, strict=True)]
        peaks = [f"{step['megabytes']:.0f}" for step in steps]
        table.add_row(name, *times, *peaks, _slope(sizes, steps))
    console.print(table)


def _slope(sizes: list[int], steps: list[dict[str, Any]]) -> str:
    """Bytes by which the peak grows a sample, between the two largest runs."""
    if len(sizes) < 2:
        return ""
    return f"{(steps[-1]['megabytes'] - steps[-2]['megabytes']) * 1e6 / (sizes[-1] - sizes[-2]):.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
