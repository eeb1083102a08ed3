"""Compute a step of a training again, to see which sample made its loss or its gradient what it was.

Goes on from the checkpoint before the step, with the run's model, data and settings, and changes nothing in its folder.
With the run's own number of ranks and micro-batch the figures are those of the run, on a CPU to the bit.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from videolavit.records.storage import StorageSettings

from .common import JobParser, add_storage_options, console, foreign, user_errors
from .progress import show_message

if TYPE_CHECKING:
    from videolavit.training.replay import ReplayedStep


def main(argv: Sequence[str] | None = None) -> None:
    """Prints tables of the step and of its samples; exits with 2 if the step cannot be computed again."""
    parser = JobParser("replay", __doc__)
    parser.add_argument("run", type=str, help="folder or s3:// prefix of a training")
    parser.add_argument("--step", type=int, required=True, help="step to compute again, as the log counts them")
    parser.add_argument("--top", type=int, default=20, help="number of samples that are shown, the largest loss first")
    parser.add_argument("--json", default=False, action="store_true", help="print all of it as JSON instead of tables")
    parser.add_argument(
        "--workers", type=int | None, help="processes on this machine; by default as many as the run had ranks"
    )
    parser.add_argument("--micro_batch", type=int | None, help="samples per forward pass; by default as in the run")
    add_storage_options(parser)
    options = parser.parse(argv)
    with console.status("loading torch"):
        from videolavit.training.replay import REPLAY_ERRORS, replay
    with user_errors(*REPLAY_ERRORS, OSError):
        found = replay(
            options.run,
            options.step,
            workers=options.workers,
            micro_batch=options.micro_batch,
            storage=StorageSettings(options.s3_endpoint),
            on_progress=show_message,
        )
    if options.json:
        print(json.dumps(asdict(found)))
        return
    out = Console(highlight=False)
    out.print(_facts(found))
    out.print(_samples(found, options.top))


def _facts(found: "ReplayedStep") -> Table:
    """Figures of the step, beside those that the run logged."""
    table = Table(f"step {found.step}", "again", "as logged", title="loss and gradient")
    for name, value in found.metrics.items():
        if name in found.logged or name == "loss":
            logged = found.logged.get(name)
            table.add_row(foreign(name), f"{value:.6g}", "" if logged is None else f"{logged:.6g}")
    ranks = f"{found.world} {'ranks' if found.world > 1 else 'rank'}"
    table.caption = f"{ranks}, micro-batch {found.micro_batch}, {len(found.skipped)} samples could not be used"
    return table


def _samples(found: "ReplayedStep", top: int) -> Table:
    """Samples with the largest loss."""
    table = Table("loss", "positions", "sample", "source", "rank", "micro-batch", title="samples")
    ordered = sorted(found.samples, key=lambda sample: sample.loss, reverse=True)
    for sample in ordered[:top]:
        figures = (f"{sample.loss:.6g}", str(sample.positions))
        place = (str(sample.rank), str(sample.micro_batch))
        table.add_row(*figures, foreign(sample.sample_id), foreign(sample.source), *place)
    if top < len(ordered):
        table.caption = f"the {top} of {len(ordered)} with the largest loss"
    return table


if __name__ == "__main__":
    main()
