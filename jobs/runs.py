"""Runs of pipelines on a terminal: their options, their progress, and tables of what they did."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.headers import PlanningIncomplete
from pipelines.planning import PlanningConflict
from pipelines.run import PlanSummary, RunSettings, RunSummary, Work
from videolavit.progress import OnProgress
from videolavit.records.cost import with_pipeline
from videolavit.records.files import InputError
from videolavit.records.identity import VERSIONS, IdentityMismatch
from videolavit.records.storage import StorageError
from videolavit.records.traffic import described
from videolavit.sandbox.errors import ProcessNotStarted

from .common import INTERRUPTED, JobParser, console, fail, foreign, return_memory, user_errors
from .progress import show_progress
from .stopping import ends_on_signals

USER_ERRORS = (InputError, StorageError, IdentityMismatch, PlanningConflict, ProcessNotStarted)


def add_run_options(parser: JobParser, inputs: str) -> None:
    """Adds the options that every run has."""
    parser.add_argument("--input", type=str, nargs="+", help=inputs)
    parser.add_argument("--output", type=str | None, help="folder or s3:// prefix of the run")
    parser.add_argument("--plan", default=False, action="store_true", help="show work and cost, write nothing")
    parser.add_argument("--retry_rejects", default=False, action="store_true", help="try the run's rejects again")
    parser.add_argument("--only", type=str | None, help="with --retry-rejects: only this error type")
    parser.add_argument(
        "--accept_changes",
        type=str,
        nargs="+",
        default=[],
        help=f"continue a run although the versions of these libraries changed: {', '.join(VERSIONS)}",
    )


def run_settings(options: Any, inputs: str) -> RunSettings:
    """Settings of a start; ends the job where options do not go together.

    Args:
        inputs: Description of the inputs, for messages.
    """
    if options.output is None and not options.plan:
        fail("--output is missing: name the folder or s3:// prefix for the run (or use --plan, which writes nothing)")
    if options.only and not options.retry_rejects:
        fail("--only goes with --retry-rejects")
    if options.plan and options.retry_rejects:
        fail("--plan shows new work only; `videolavit inspect RUN` shows what --retry-rejects would try")
    if not options.input and not options.retry_rejects:
        fail(f"--input is missing: name the {inputs}")
    return RunSettings(
        retry_rejects=options.retry_rejects, only=options.only, accept_changes=tuple(options.accept_changes)
    )


def show_run(
    plan: Callable[[OnProgress], PlanSummary] | None,
    start: Callable[[OnProgress], RunSummary],
    *errors: type[Exception],
) -> int:
    """Plans or starts a run, shows its progress and its summary, and returns the exit status.

    Args:
        plan: Called instead of `start`, to show the plan and write nothing.
        errors: Further mistakes of users.
    """
    return_memory()
    try:
        with ends_on_signals(), user_errors(*USER_ERRORS, *errors), show_progress() as on_progress:
            if plan is not None:
                planned = plan(on_progress)
            else:
                summary = start(on_progress)
    except KeyboardInterrupt:
        console.print("interrupted; the same command continues where it stopped")
        return INTERRUPTED
    except PlanningIncomplete as error:
        console.print(foreign(error), soft_wrap=True)
        return 1
    if plan is not None:
        _print_plan(planned)
        return 0
    print_run(summary)
    return 0 if summary.is_complete else 1


def _print_plan(summary: PlanSummary) -> None:
    table = Table(title="plan: nothing is written")
    figures = list(summary.new.figures) or list(summary.waiting.figures)
    for heading in ("", "sources", "samples", *figures, "core-hours"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, work in (("new", summary.new), ("planned before, not done", summary.waiting)):
        values = [_figure(figure, work.figures.get(figure, 0)) for figure in figures]
        table.add_row(name, f"{work.sources:,}", f"{work.samples:,}", *values, _core_hours(work))
    Console(highlight=False).print(table)
    if summary.calibrated_on:
        print(f"the estimate is calibrated on {summary.calibrated_on} shards of the run")
    if summary.encoder_device:
        unit = "GPU-hours" if summary.encoder_device == "cuda" else "core-hours"
        print(f"tokenizers, as timed on a few batches: ~{summary.encoder_hours:.2g} {unit} in addition")
    if summary.new.unread:
        print(f"{summary.new.unread} sources have no readable header; they will most likely be rejected")
    _print_notes(summary.joined_rows, summary.ignored_captions, summary.left_out)


def _core_hours(work: Work) -> str:
    """Estimate with the interval that most runs fall into."""
    low, high = work.core_hours / work.spread, work.core_hours * work.spread
    return f"~{work.core_hours:.2g} ({low:.2g} to {high:.2g})" if work.core_hours else "0"


def _figure(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "hours" else f"~{value:,}" if name == "clips" else f"{value:,}"


def print_run(summary: RunSummary) -> None:
    """Prints a table of a run."""
    table = Table(title=foreign(f"run {summary.folder}"), show_header=False)
    for name in ("planned", "samples", "rejects", "shards"):
        table.add_row(name, f"{getattr(summary, name):,}")
    for kind, number in summary.rejects_by_type.items():
        table.add_row(foreign(f"  {kind}"), f"{number:,}")
    for name, number in summary.counts.items():
        table.add_row(name.replace("_", " "), f"{number:,}")
    table.add_row("video", f"{summary.video_hours:.3f} h")
    if summary.core_hours and summary.planned_core_hours:
        took, planned = (
            with_pipeline(3600 * hours, summary.samples) / 3600
            for hours in (summary.core_hours, summary.planned_core_hours)
        )
        table.add_row("core-hours", f"{took:.2g}; planned {planned:.2g} ({planned / took - 1:+.0%})")
    if summary.core_hours:
        table.add_row("speed", f"{summary.video_hours / summary.core_hours:.1f} video hours a core hour")
    if summary.s3:
        table.add_row("S3, all starts", described(summary.s3))
    table.add_row("this start", f"{summary.seconds:.1f} s")
    table.add_row("report", foreign(summary.report))
    Console(highlight=False).print(table)
    for line in summary.accepted_changes:
        console.print(foreign(f"accepted: {line}"), soft_wrap=True)
    _print_notes(summary.joined_rows, summary.ignored_captions, summary.left_out)
    if summary.stopped:
        console.print("[red]stopped:[/]", foreign(summary.stopped), soft_wrap=True)
    if summary.shards_left:
        console.print(f"[yellow]{summary.shards_left} shards are not committed yet; start the same command again[/]")


def _print_notes(joined: int, ignored: int, left_out: Sequence[str]) -> None:
    for line in left_out:
        console.print(foreign(f"left out: {line}"), soft_wrap=True)
    if joined:
        console.print(f"{joined} rows name a video again; their captions are in the column `texts`")
    if ignored:
        console.print(
            f"{ignored} captions were not applied: an earlier input names their video, or it is planned already; "
            "another --output takes the captions of its first input",
            soft_wrap=True,
        )
