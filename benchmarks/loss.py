"""Memory and time of the language model's loss, against the loss from all logits; see README.md beside this file.

python -m benchmarks.loss [--positions 4096] [--width 512] [--rounds 3] [--output bench-output]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videolavit.models.language_model.loss import token_losses

from .shared import TIME_LIMIT, console, in_own_process, result_table, verdict

VOCABULARY, POSITIONS = 49_412, 4096
"""Published vocabulary, and ids of two published rows."""

GOAL = 1 / 8
"""Largest share of the memory that all logits take."""

Losses = Callable[[nn.Module, Tensor, Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the numbers to a JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__)
    parser.add_argument("--positions", type=int, default=POSITIONS, help="positions that predict an id")
    parser.add_argument("--width", type=int, default=512, help="width of the hidden states")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of each side, in turn, of which the median counts"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    options = parser.parse_args(argv)
    ways = [(way, precision) for precision in ("float32", "bfloat16") for way in ("whole", "pieces")]
    found: dict[tuple[str, str], list[tuple[int, float]]] = {one: [] for one in ways}
    for _ in range(options.rounds):
        for way, precision in ways:
            arguments = (way, precision, options.positions, options.width)
            found[way, precision].append(in_own_process(measure, *arguments, limit=TIME_LIMIT))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = result_table(f"{options.positions} positions, width {options.width}, {device}", "way", "MB", "seconds")
    middle = {one: (median(size for size, _ in runs), median(took for _, took in runs)) for one, runs in found.items()}
    for (way, precision), (size, seconds) in middle.items():
        table.add_row(f"{way}, {precision}", f"{size / 1e6:.0f}", f"{seconds:.2f}")
    console.print(table)
    for precision in ("float32", "bfloat16"):
        share = middle["pieces", precision][0] / middle["whole", precision][0]
        verdict(f"memory of the loss in {precision}, of that of all logits", share, GOAL, at_least=False)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"loss-{time.strftime('%Y%m%dT%H%M%S')}.json"
    numbers = {f"{way} {precision}": runs for (way, precision), runs in found.items()}
    file.write_text(json.dumps({"device": device, "torch": torch.__version__, "ways": numbers}, indent=1) + "\n")
    console.print(f"numbers: {file}")


def measure(way: str, precision: str, positions: int = POSITIONS, width: int = 32) -> tuple[int, float]:
    """Measures a forward and a backward pass.

    Args:
        way: `whole` for all logits at a time, or `pieces`.
        precision: `float32` or `bfloat16`.
        positions: Number of positions.
        width: Width of the hidden states.

    Returns:
        Bytes by which the memory grew at most, gradients included, and seconds.
    """
    losses: Losses = {"whole": whole_losses, "pieces": token_losses}[way]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, precision)
    _pass(losses, nn.Linear(8, 16, bias=False), torch.zeros(4, 8), torch.zeros(4, dtype=torch.long))  # loads libraries
    with device:
        head = nn.Linear(width, VOCABULARY, bias=False, dtype=dtype)
        hidden = torch.randn(positions, width, dtype=dtype)
        targets = torch.randint(VOCABULARY, (positions,))
    grown = _growth(device)
    started = time.perf_counter()
    _pass(losses, head, hidden, targets)
    size = grown()
    return size, time.perf_counter() - started


def whole_losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Computes the losses from all logits."""
    return F.cross_entropy(head(hidden).float(), targets, reduction="none")


def _pass(losses: Losses, head: nn.Module, hidden: Tensor, targets: Tensor) -> None:
    losses(head, hidden.requires_grad_(), targets).mean().backward()


def _growth(device: torch.device) -> Callable[[], int]:
    """Function that tells by how many bytes the memory grew at most since now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is used now
    resident = _status("VmRSS")
    return lambda: _status("VmHWM") - resident


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
