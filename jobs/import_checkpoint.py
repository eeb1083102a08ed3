"""Convert a downloaded folder `rain1011/Video-LaVIT-v1` to a model folder: safetensors and JSON, no pickle.

Everything is checked before anything is written: each expected tensor must be there, in its shape, and each tensor
that is there must be used, or ignored by name. Weights are copied bit for bit, a shard at a time.

The published weights carry two licences: the Llama 2 Community License, and the LaVIT Community License. The second
one covers trained weights and what is derived from them, so also the imported folder: whoever passes it on includes the
agreement and an attribution notice and follows its use policy, and neither weights nor outputs may be used to improve
other large language models. This project ships no weights.
"""

import contextlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from videolavit.models.checkpoint import CheckpointSummary, ImportSettings, import_checkpoint
from videolavit.models.network import ModelError
from videolavit.progress import OnProgress, Progress

from .common import INTERRUPTED, JobParser, console, foreign, user_errors

LICENCES = (
    "The published weights, and this copy of them, are under the Llama 2 Community License and the LaVIT Community "
    "License: read both before you pass the folder on or train another language model with it or its outputs."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Imports a checkpoint. Exits with 2 after a user's mistake, with 130 when interrupted."""
    options = _parser().parse(argv)
    with user_errors(ModelError, OSError), interruptible(), files_bar() as on_progress:
        settings = ImportSettings(
            preset=options.preset, only=tuple(options.only) if options.only else None, ignore=tuple(options.ignore)
        )
        summary = import_checkpoint(options["from"], options.to, settings, on_progress)
    _print_summary(summary)


def _parser() -> JobParser:
    parser = JobParser("import-checkpoint", __doc__)
    parser.add_argument("--from", type=str, required=True, help="downloaded folder")
    parser.add_argument("--to", type=str, required=True, help="new model folder")
    parser.add_argument(
        "--preset",
        type=str,
        default=ImportSettings.preset,
        help="shapes that the published files do not hold: a preset, or a YAML file of the same form",
    )
    add_only(parser, "parts of an incomplete download to import")
    parser.add_argument(
        "--ignore", type=str, nargs="+", default=[], help="patterns of tensor names that may be left over"
    )
    return parser


def add_only(parser: JobParser, purpose: str) -> None:
    """Adds the option that names parts."""
    example = "such as `motion_tokenizer` or `understanding`"
    parser.add_argument("--only", type=str, nargs="+", help=f"{purpose}, {example}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns an interrupt into a line and the usual exit status."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("interrupted; nothing was left behind")
        raise SystemExit(INTERRUPTED) from None


@contextlib.contextmanager
def files_bar() -> Iterator[OnProgress]:
    """Shows the files that were written: a bar of bytes on a terminal, a line per file in a log."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def on_progress(progress: Progress) -> None:
            line = f"{progress.stage}: {progress.message}"
            bar.update(task, completed=progress.done, total=progress.total or None, description=foreign(line).plain)
            if not console.is_terminal:
                console.print(foreign(line), soft_wrap=True)

        yield on_progress


def _print_summary(summary: CheckpointSummary) -> None:
    table = Table("part", "tensors", "parameters", "GB", "types", title=foreign(f"model {summary.folder}"))
    for part in summary.parts:
        if part.tensors:
            sizes = (f"{part.tensors:,}", f"{part.parameters:,}", f"{part.nbytes / 1e9:.3f}")
            table.add_row(part.name, *sizes, ", ".join(part.types))
        else:
            table.add_row(part.name, "", "", "", "")
    stdout = Console(highlight=False)
    stdout.print(table)
    for remark in summary.remarks:
        stdout.print(foreign(remark), soft_wrap=True)
    stdout.print(LICENCES, soft_wrap=True)


if __name__ == "__main__":
    main()
