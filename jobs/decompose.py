"""Decompose a corpus of videos into Parquet clip shards of keyframes and MPEG-4 motion vectors.

The output folder is the run: `clips/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Starting the
same command again continues an interrupted run, and does the new part of a grown input.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.decompose import (
    SOURCES_PER_PLAN,
    WorkerSettings,
    commit_plan,
    decompose_shards,
    pending_shards,
    plan_segments,
)
from videolavit.records import schema
from videolavit.records.identity import IdentityMismatch, differences
from videolavit.records.inputs import InputError, list_sources
from videolavit.records.report import REPORT, write_report
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger
from videolavit.records.storage import Folder, StorageError, StorageSettings

from .common import JobParser, console, fail, ray_runtime, user_errors
from .progress import Tally

RUN, REJECTS = "run.json", "rejects.parquet"
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        settings = _pick(SampleSettings, options)
        workers = _pick(WorkerSettings, options)
    storage = _pick(StorageSettings, options)
    if options.output is None and not options.plan:
        fail("--output is missing: name the folder or s3:// prefix for the run (or use --plan to only look)")
    if options.only and not options.retry_rejects:
        fail("--only goes with --retry-rejects")
    with user_errors(InputError, StorageError, IdentityMismatch), ray_runtime():
        ledger = Ledger(Folder(options.output, storage)) if options.output else None
        if ledger is not None:
            _check_identity(ledger.folder, settings, write=not options.plan)
        if options.plan or ledger is None:
            _show_plan(_new_sources(ledger, options, storage), ledger, settings, storage, workers)
        else:
            sys.exit(_run(ledger, settings, storage, workers, options))


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


def _pick(kind: type[T], options: Any) -> T:
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _run(
    ledger: Ledger, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings, options: Any
) -> int:
    started = time.monotonic()
    if options.retry_rejects:
        _plan_retries(ledger, settings, storage, workers, options.only)
    elif options.input:
        sources = _new_sources(ledger, options, storage)
        _plan(ledger, sources, settings, storage, workers)
    elif not ledger.plans():
        fail("--input is missing: name the videos")
    _work(ledger, settings, workers)
    left = len(pending_shards(ledger))
    _finish(ledger, settings, left, time.monotonic() - started)
    return 1 if left else 0


# ---- planning -----------------------------------------------------------------------------------------------------


def _check_identity(folder: Folder, settings: SampleSettings, write: bool) -> None:
    """Refuses a folder that other settings or other codecs made; claims a new one."""
    ours = json.loads(json.dumps(settings.identity()))
    found = folder.read(RUN)
    if found is None and write:
        folder.create_bytes(RUN, _json({"identity": ours}))
        found = folder.read(RUN)
    if found is None:
        return
    changed = differences(json.loads(found)["identity"], ours)
    if changed:
        raise IdentityMismatch(
            f"{folder.url} was made by a different run. Choose another --output, or undo what differs (theirs -> ours):"
            + "".join(f"\n  {line}" for line in changed)
        )


def _new_sources(ledger: Ledger | None, options: Any, storage: StorageSettings) -> pa.Table:
    if not options.input:
        fail("--input is missing: name the videos")
    sources = list_sources(options.input, storage, options.text_column)
    known: set[str] = set()
    for plan in ledger.planned(["url"]) if ledger else ():
        known.update(plan["url"].to_pylist())
    return sources.filter(pa.array([url not in known for url in sources["url"].to_pylist()], pa.bool_()))


def _plan(
    ledger: Ledger, sources: pa.Table, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings
) -> None:
    for start in range(0, sources.num_rows, SOURCES_PER_PLAN):
        part = sources.slice(start, SOURCES_PER_PLAN)
        _commit(ledger, _planned(part, settings, storage, workers))


def _planned(
    sources: pa.Table, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings
) -> pa.Table:
    """Plan rows of the sources, without shards. Sources lost to a failing planner are not skipped but an error."""
    with console.status(f"reading the headers of {sources.num_rows} sources"):
        return pa.concat_tables(plan_segments(sources, settings, storage, workers))


def _plan_retries(
    ledger: Ledger, settings: SampleSettings, storage: StorageSettings, workers: WorkerSettings, only: str | None
) -> None:
    """Plans the standing rejects again: known segments as they were, unreadable sources from their headers on."""
    rejects = {reject["sample_id"]: reject for reject in ledger.rejects(ledger.summaries())}
    chosen = {key for key, reject in rejects.items() if only in (None, reject["error_type"])}
    if not chosen:
        kinds = Counter(reject["error_type"] for reject in rejects.values())
        console.print(f"no rejects to retry; the run has {dict(kinds) or 'none'}")
        return
    rows = pa.concat_tables(
        [plan.filter(pc.is_in(plan["sample_id"], pa.array(chosen))) for plan in ledger.planned()],
        promote_options="permissive",
    )
    latest = {sample: index for index, sample in enumerate(rows["sample_id"].to_pylist())}
    rows = rows.take(sorted(latest.values()))
    attempts = pa.array([rejects[sample]["attempts"] for sample in rows["sample_id"].to_pylist()], pa.int32())
    rows = rows.set_column(rows.schema.get_field_index("attempts"), "attempts", attempts)
    rows = rows.append_column("pixels", pa.array([0] * rows.num_rows, pa.int64()))
    unread = pc.is_null(rows["planned_seconds"])
    parts = [rows.filter(pc.invert(unread))]
    if pc.any(unread).as_py():
        given = [name for name in rows.column_names if name not in _FOUND_BY_PLANNING]
        parts.append(_planned(rows.filter(unread).select(given), settings, storage, workers))
    _commit(ledger, pa.concat_tables(parts, promote_options="permissive"))


_FOUND_BY_PLANNING = {"sample_id", "start_seconds", "end_seconds", "planned_seconds", "cost", "shard", "pixels"}


def _commit(ledger: Ledger, planned: pa.Table) -> None:
    if planned.num_rows and not commit_plan(ledger, planned):
        fail("another run has just planned into this output; start again to join it")


def _show_plan(
    sources: pa.Table,
    ledger: Ledger | None,
    settings: SampleSettings,
    storage: StorageSettings,
    workers: WorkerSettings,
) -> None:
    rows = _planned(sources, settings, storage, workers).to_pylist() if sources.num_rows else []
    waiting = [row for shard in pending_shards(ledger) for row in shard.to_pylist()] if ledger else []
    table = Table(title="plan: nothing is written")
    for heading in ("", "sources", "samples", "hours", "clips", "core-hours"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, group in (("new", rows), ("planned before, not done", waiting)):
        seconds = sum(row["planned_seconds"] or 0 for row in group)
        clips = sum(-(-int((row["planned_seconds"] or 0) * settings.fps) // 24) for row in group)
        table.add_row(
            name,
            str(len({row["source"] for row in group})),
            str(len(group)),
            f"{seconds / 3600:.2f}",
            f"~{clips}",
            f"~{sum(row['cost'] for row in group) / 3600:.3f}",
        )
    _print(table)
    unread = sum(row["planned_seconds"] is None for row in rows)
    if unread:
        print(f"{unread} sources have no readable header; they will most likely be rejected")


# ---- work and its summary -----------------------------------------------------------------------------------------


def _work(ledger: Ledger, settings: SampleSettings, workers: WorkerSettings) -> None:
    shards = pending_shards(ledger)
    if not shards:
        console.print("nothing new to do")
        return
    with Tally("decompose", sum(shard.num_rows for shard in shards)) as tally:
        for record in decompose_shards(shards, ledger.folder, settings, workers):
            error = record.pop("error")
            if error:
                console.print(f"[red]shard failed:[/] {escape(error)}", soft_wrap=True)
            tally.add(record)


def _finish(ledger: Ledger, settings: SampleSettings, left: int, seconds: float) -> None:
    """Writes what is derived from the shards, and prints the summary."""
    summaries = ledger.summaries()
    rejects = ledger.rejects(summaries)
    folder = ledger.folder
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rejects, schema.versioned(schema.REJECTS, "rejects")), sink)
    folder.replace(REJECTS, sink.getvalue().to_pybytes())
    planned = {sample for plan in ledger.planned(["sample_id"]) for sample in plan["sample_id"].to_pylist()}
    counts: dict[str, Any] = {
        "planned": len(planned),
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
    _print(table)
    if counts["shards_left"]:
        console.print(f"[yellow]{counts['shards_left']} shards could not be made; start the same command again[/]")


def _print(table: Table) -> None:
    Console(highlight=False).print(table)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


if __name__ == "__main__":
    main()
