"""Decompose a corpus of videos into Parquet clip shards of keyframes and MPEG-4 motion vectors.

The output folder is the run: `clips/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Starting the
same command again continues an interrupted run, and does the new part of a grown input.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.decompose import WorkerSettings, decompose_shards, pending_shards
from videolavit.records import schema
from videolavit.records.identity import IdentityMismatch, differences
from videolavit.records.inputs import InputError, list_sources
from videolavit.records.report import REPORT, write_report
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger
from videolavit.records.storage import Folder, StorageError, StorageSettings

from .common import JobParser, console, fail, pick, ray_runtime, user_errors
from .planning import Planner
from .progress import Tally

RUN, REJECTS = "run.json", "rejects.parquet"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        settings, workers = pick(SampleSettings, options), pick(WorkerSettings, options)
    storage = pick(StorageSettings, options)
    _check_options(options)
    with user_errors(InputError, StorageError, IdentityMismatch):
        ledger = Ledger(Folder(options.output, storage)) if options.output else None
        if ledger is not None:
            _check_identity(ledger.folder, settings, must_exist=options.retry_rejects)
        planner = Planner(ledger, settings, workers, storage)
        sources = list_sources(options.input, storage, options.text_column) if options.input else None
        with ray_runtime():
            if ledger is None or options.plan:
                planner.show(planner.new(sources))
            else:
                ledger.folder.claim(RUN, _json({"identity": settings.identity(), "complete": False}))
                _check_identity(ledger.folder, settings)
                sys.exit(_run(ledger, planner, sources, options))


def _parser() -> JobParser:
    parser = JobParser("decompose", __doc__)
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="folder, glob, manifest (.parquet, .jsonl, .csv with a `video` column), .tar, or video; local or s3://",
    )
    parser.add_argument("--output", type=str | None, help="folder or s3:// prefix of the run")
    parser.add_argument("--plan", default=False, action="store_true", help="show work and cost, write nothing")
    parser.add_argument("--retry_rejects", default=False, action="store_true", help="try the run's rejects again")
    parser.add_argument("--only", type=str | None, help="with --retry-rejects: only this error type")
    parser.add_argument("--text_column", type=str | None, help="caption column of a manifest (default: text)")
    parser.add_class_arguments(SampleSettings)
    parser.add_class_arguments(WorkerSettings)
    parser.add_class_arguments(StorageSettings)
    return parser


def _check_options(options: Any) -> None:
    if options.output is None and not options.plan:
        fail("--output is missing: name the folder or s3:// prefix for the run (or use --plan to only look)")
    if options.only and not options.retry_rejects:
        fail("--only goes with --retry-rejects")
    if options.plan and options.retry_rejects:
        fail("--plan shows new work only; `videolavit inspect RUN` shows what --retry-rejects would try")
    if not options.input and not options.retry_rejects:
        fail("--input is missing: name the videos")


def _check_identity(folder: Folder, settings: SampleSettings, must_exist: bool = False) -> None:
    """Refuses a folder that other settings or other codecs made."""
    found = folder.read(RUN)
    if found is None:
        if must_exist:
            fail(f"{folder.url} holds no run; --retry-rejects takes the --output of one")
        return
    try:
        theirs = json.loads(found)["identity"]
    except (ValueError, KeyError, TypeError):
        raise IdentityMismatch(f"{folder.join(RUN)} is not of this project; choose another --output") from None
    changed = differences(theirs, json.loads(_json(settings.identity())))
    if changed:
        raise IdentityMismatch(
            f"{folder.url} was made by a different run. Choose another --output, or undo what differs (theirs -> ours):"
            + "".join(f"\n  {line}" for line in changed)
        )


def _run(ledger: Ledger, planner: Planner, sources: pa.Table | None, options: Any) -> int:
    started = time.monotonic()
    if options.retry_rejects:
        planner.commit_retries(options.only)
    if sources is not None:
        planner.commit(planner.new(sources))
    shards = pending_shards(ledger)
    if shards:
        _work(shards, ledger, planner)
    else:
        console.print("nothing new to do")
    left = len(ledger.pending())
    _finish(ledger, planner.settings, left, time.monotonic() - started)
    return 1 if left else 0


def _work(shards: list[pa.Table], ledger: Ledger, planner: Planner) -> None:
    with Tally("decompose", sum(shard.num_rows for shard in shards)) as tally:
        for record in decompose_shards(shards, ledger.folder, planner.settings, planner.workers):
            error = record.pop("error")
            if error:
                console.print(f"[red]shard failed:[/] {escape(error)}", soft_wrap=True)
            tally.add(record)


def _finish(ledger: Ledger, settings: SampleSettings, left: int, seconds: float) -> None:
    """Writes what is derived from the shards, and prints the summary."""
    summaries = ledger.summaries()
    standing = ledger.standing()
    rejects = ledger.rejects(summaries, standing)
    folder = ledger.folder
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rejects, schema.versioned(schema.REJECTS, "rejects")), sink)
    folder.replace(REJECTS, sink.getvalue().to_pybytes())
    counts: dict[str, Any] = {
        "planned": len(standing),
        "samples": sum(summary.samples for summary in summaries),
        "clips": sum(summary.clips for summary in summaries),
        "frames": sum(summary.frames for summary in summaries),
        "rejects": len(rejects),
        "rejects_by_type": dict(Counter(reject["error_type"] for reject in rejects).most_common()),
        "shards": len(summaries),
        "shards_left": left,
        "video_hours": sum(summary.video_seconds for summary in summaries) / 3600,
        "core_hours": sum(summary.work_seconds for summary in summaries) / 3600,
    }
    if not left and counts["samples"] + counts["rejects"] != counts["planned"]:
        raise AssertionError(f"{counts['planned']} samples were planned, the shards account for others: {counts}")
    run = {"identity": settings.identity(), "complete": not left, "counts": counts, "last_start_seconds": seconds}
    folder.replace(RUN, _json(run))
    write_report(folder, run, rejects)
    _print_summary(folder, counts, seconds)


def _print_summary(folder: Folder, counts: dict[str, Any], seconds: float) -> None:
    table = Table(title=f"run {folder.url}", show_header=False)
    for name in ("planned", "samples", "clips", "rejects", "shards"):
        table.add_row(name, f"{counts[name]:,}")
    for kind, number in counts["rejects_by_type"].items():
        table.add_row(f"  {kind}", f"{number:,}")
    table.add_row("video", f"{counts['video_hours']:.3f} h")
    speed = counts["video_hours"] / counts["core_hours"] if counts["core_hours"] else 0.0
    table.add_row("speed", f"{speed:.1f} video hours a core hour")
    table.add_row("this start", f"{seconds:.1f} s")
    table.add_row("report", folder.join(REPORT) if folder.is_local else f"{folder.url}/{REPORT}")
    Console(highlight=False).print(table)
    if counts["shards_left"]:
        console.print(f"[yellow]{counts['shards_left']} shards are not made yet; start the same command again[/]")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


if __name__ == "__main__":
    main()
