"""Turn a downloaded folder `rain1011/Video-LaVIT-v1` into a model folder: safetensors and JSON, no pickle.

Everything is checked before anything is written: each expected tensor must be there, in its shape, and each tensor
that is there must be used or be named. Weights are copied bit for bit, a shard at a time.

The published weights carry two licences: the Llama 2 Community License, and the LaVIT Community License. The second
one covers trained weights and what is derived from them, so also the imported folder: whoever passes it on includes the
agreement and an attribution notice and follows its use policy, and neither weights nor outputs may be used to improve
other large language models. This project ships no weights.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from videolavit.models.checkpoint import ImportPlan, OnWrite, model_config, new_folder, plan_import, selected_parts
from videolavit.models.network import ModelError

from .common import INTERRUPTED, JobParser, console, user_errors

LICENCES = (
    "The published weights, and this copy of them, are under the Llama 2 Community License and the LaVIT Community "
    "License: read both before you pass the folder on or train another language model with it or its outputs."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Imports; exits with 2 on a user's mistake, with 130 when interrupted. Neither leaves a folder behind."""
    options = _parser().parse(argv)
    with user_errors(ModelError, OSError):
        config = model_config(options.preset)
        parts = selected_parts(options.only)
        with console.status("reading names and shapes"):
            plan = plan_import(Path(options["from"]), config, parts, options.ignore, whole=options.only is None)
        with (
            interruptible(),
            new_folder(Path(options.to), plan.nbytes, say) as folder,
            file_bar("import", plan.nbytes) as on_write,
        ):
            plan.write(folder, on_write)
    _print_summary(plan, options.to)


def _parser() -> JobParser:
    parser = JobParser("import-checkpoint", __doc__)
    parser.add_argument("--from", type=str, required=True, help="the downloaded folder")
    parser.add_argument("--to", type=str, required=True, help="new model folder")
    parser.add_argument(
        "--preset",
        type=str,
        default="video-lavit-7b",
        help="shapes that the published files do not tell: a preset, or a YAML file of the same form",
    )
    add_only(parser, "import these parts of an incomplete download")
    parser.add_argument(
        "--ignore", type=str, nargs="+", default=[], help="patterns of tensor names that may be left over"
    )
    return parser


def add_only(parser: JobParser, purpose: str) -> None:
    """The option that names parts."""
    example = "such as `motion_tokenizer` or `understanding`"
    parser.add_argument("--only", type=str, nargs="+", help=f"{purpose}, {example}")


def say(message: str) -> None:
    """Prints a message as it is."""
    console.print(message, soft_wrap=True, markup=False)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ends the job in the usual way when the user does."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; nothing was left behind")
        raise SystemExit(INTERRUPTED) from None


@contextlib.contextmanager
def file_bar(what: str, total: int) -> Iterator[OnWrite]:
    """Shows files as they are written, of a total of bytes: a bar on a terminal, a line a file in a log."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def on_write(file: Path, size: int) -> None:
            place = "/".join(file.parts[-2:])
            bar.update(task, advance=size, description=place)
            if not console.is_terminal:
                say(f"{what}: {place}, {size / 1e9:.3f} GB")

        yield on_write


def _print_summary(plan: ImportPlan, target: str) -> None:
    table = Table("part", "tensors", "parameters", "GB", "types", title=f"model {target}")
    for part in plan.parts:
        if found := plan.tensors.get(part.name):
            parameters = sum(stored.shape.numel() for stored in found.values())
            size = sum(stored.nbytes for stored in found.values()) / 1e9
            types = sorted({str(stored.dtype).removeprefix("torch.") for stored in found.values()})
            table.add_row(part.name, f"{len(found):,}", f"{parameters:,}", f"{size:.3f}", ", ".join(types))
        else:
            table.add_row(part.name, "", "", "", "")
    stdout = Console(highlight=False)
    stdout.print(table)
    for remark in plan.remarks:
        stdout.print(remark, soft_wrap=True, markup=False)
    stdout.print(LICENCES, soft_wrap=True)


if __name__ == "__main__":
    main()
