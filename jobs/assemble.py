"""Make a model folder from weights that are on disk: a language model, tokenizers, and diffusion models.

Everything is checked before anything is written. The vocabulary of the language model grows by the visual and motion
codes; its logits for texts stay. Parts that are not named are untrained. What was taken, what is new and what was left
over is shown, and listed by name in `assembly.json`. Licences of given weights also cover the new folder.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from videolavit.models.assembly import AssembleSettings, AssembleSummary, assemble
from videolavit.models.network import ModelError

from .common import JobParser, foreign, pick, user_errors
from .import_checkpoint import interruptible
from .progress import show_progress

SHOWN_LEFT_OVER = 8
"""Largest number of left-over tensors of a part that are shown by name."""


def main(argv: Sequence[str] | None = None) -> None:
    """Assembles a model. Exits with 2 after a user's mistake, with 130 when interrupted."""
    options = _parser().parse(argv)
    with user_errors(ValueError, ModelError, OSError), interruptible(), show_progress() as on_progress:
        summary = assemble(options.output, pick(AssembleSettings, options), on_progress)
    _print_summary(summary)


def _parser() -> JobParser:
    parser = JobParser("assemble", __doc__)
    parser.add_argument("--output", type=str, required=True, help="new model folder")
    parser.add_class_arguments(AssembleSettings)
    return parser


def _print_summary(summary: AssembleSummary) -> None:
    table = Table("part", "taken", "widened", "new", "left over", title=foreign(f"model {summary.folder}"))
    for part, report in summary.reports.items():
        counts = (report.taken, report.widened, report.new, report.left_over)
        table.add_row(part, *(f"{len(names):,}" if names else "" for names in counts))
    stdout = Console(highlight=False)
    stdout.print(table)
    for part, report in summary.reports.items():
        if report.left_over:
            more = len(report.left_over) - SHOWN_LEFT_OVER
            names = ", ".join(report.left_over[:SHOWN_LEFT_OVER]) + (f" and {more} more" if more > 0 else "")
            stdout.print(foreign(f"left over of {part}: {names}"), soft_wrap=True)
    for remark in summary.remarks:
        stdout.print(foreign(remark), soft_wrap=True)
    ids = summary.vocabulary
    line = f"ids: {ids.text_size} of texts, {ids.visual_codes} visual codes, {ids.motion_codes} motion codes, 4 markers"
    stdout.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
