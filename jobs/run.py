"""A run of any pipeline into a folder: its identity, its plan, its work, and what is derived from its shards."""

import json
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.common import pending_shards
from videolavit.records import schema
from videolavit.records.identity import IdentityMismatch, differences
from videolavit.records.report import REPORT
from videolavit.records.shards import Ledger, total
from videolavit.records.storage import Folder

from .common import JobParser, console, fail
from .planning import Planner
from .progress import Tally

RUN, REJECTS = "run.json", "rejects.parquet"


class Run(ABC):
    """What a pipeline adds to a run.

    Args:
        ledger: Of the run; None is a run that does not exist yet, to be looked at only.
    """

    name: ClassVar[str]

    def __init__(self, ledger: Ledger | None, planner: Planner[Any]) -> None:
        self.ledger, self.planner = ledger, planner

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the shards. A folder that has another one is refused."""

    @abstractmethod
    def work(self, shards: list[pa.Table], folder: Folder) -> Iterator[dict[str, Any]]:
        """Makes shards; yields progress records with `error`."""

    @abstractmethod
    def progress(self, counts: Mapping[str, float], seconds: float) -> str:
        """What the progress line says of the records so far."""

    @abstractmethod
    def counts(self, totals: Counter[str]) -> dict[str, Any]:
        """What `run.json` says of the shards, from their footers' counts."""

    @abstractmethod
    def summary(self, counts: dict[str, Any]) -> list[tuple[str, str]]:
        """What the summary says beside the numbers of samples and rejects."""

    @abstractmethod
    def write_report(self, folder: Folder, run: dict[str, Any], rejects: list[dict[str, Any]]) -> None:
        """Writes the dataset card."""

    def start(self, sources: pa.Table | None, options: Any) -> None:
        """Shows the plan, or does what there is to be done and exits with the status."""
        if self.ledger is None or options.plan:
            self.planner.show(self.planner.new(sources))
            return
        self.ledger.folder.claim(RUN, _json({"identity": self.identity(), "complete": False}))
        self.check_identity()
        sys.exit(self._run(self.ledger, sources, options))

    def check_identity(self, must_exist: bool = False) -> None:
        """Refuses a folder that another run made.

        Raises:
            IdentityMismatch: naming what differs.
        """
        if self.ledger is None:
            return
        folder = self.ledger.folder
        found = folder.read(RUN)
        if found is None:
            if must_exist:
                fail(f"{folder.url} holds no run; --retry-rejects takes the --output of one")
            return
        try:
            theirs = dict(json.loads(found)["identity"])
        except (ValueError, KeyError, TypeError):
            raise IdentityMismatch(f"{folder.join(RUN)} is not of this project; choose another --output") from None
        kind = theirs.get("kind", "clips")
        if kind != self.ledger.kind.folder:
            raise IdentityMismatch(f"{folder.url} is a run of {kind}; choose another --output for {self.name}")
        changed = differences(theirs, json.loads(_json(self.identity())))
        if changed:
            raise IdentityMismatch(
                f"{folder.url} was made by a different run. Choose another --output, or undo what differs "
                "(theirs -> ours):" + "".join(f"\n  {line}" for line in changed)
            )

    def _run(self, ledger: Ledger, sources: pa.Table | None, options: Any) -> int:
        started = time.monotonic()
        if options.retry_rejects:
            self.planner.commit_retries(options.only)
        if sources is not None:
            self.planner.commit(self.planner.new(sources))
        shards = pending_shards(ledger)
        if shards:
            self._work(shards, ledger)
        else:
            console.print("nothing new to do")
        left = len(ledger.pending())
        self._finish(ledger, left, time.monotonic() - started)
        return 1 if left else 0

    def _work(self, shards: list[pa.Table], ledger: Ledger) -> None:
        with Tally(self.name, sum(shard.num_rows for shard in shards), self.progress) as tally:
            for record in self.work(shards, ledger.folder):
                error = record.pop("error")
                if error:
                    console.print(f"[red]shard failed:[/] {escape(error)}", soft_wrap=True)
                tally.add(record)

    def _finish(self, ledger: Ledger, left: int, seconds: float) -> None:
        """Writes what is derived from the shards, and prints the summary."""
        summaries = ledger.summaries()
        standing = ledger.standing()
        rejects = ledger.rejects(summaries, standing)
        totals, folder = total(summaries), ledger.folder
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rejects, schema.versioned(schema.REJECTS, "rejects")), sink)
        folder.replace(REJECTS, sink.getvalue().to_pybytes())
        counts: dict[str, Any] = {
            "planned": len(standing),
            "samples": totals["samples"],
            **self.counts(totals),
            "rejects": len(rejects),
            "rejects_by_type": dict(Counter(reject["error_type"] for reject in rejects).most_common()),
            "shards": len(summaries),
            "shards_left": left,
            "video_hours": totals["video_seconds"] / 3600,
            "core_hours": totals["work_seconds"] / 3600,
        }
        if not left and counts["samples"] + counts["rejects"] != counts["planned"]:
            raise AssertionError(f"{counts['planned']} samples were planned, the shards account for others: {counts}")
        run = {"identity": self.identity(), "complete": not left, "counts": counts, "last_start_seconds": seconds}
        folder.replace(RUN, _json(run))
        self.write_report(folder, run, rejects)
        self._print_summary(folder, counts, seconds)

    def _print_summary(self, folder: Folder, counts: dict[str, Any], seconds: float) -> None:
        table = Table(title=f"run {folder.url}", show_header=False)
        for name in ("planned", "samples", "rejects", "shards"):
            table.add_row(name, f"{counts[name]:,}")
        for kind, number in counts["rejects_by_type"].items():
            table.add_row(f"  {kind}", f"{number:,}")
        for name, value in self.summary(counts):
            table.add_row(name, value)
        table.add_row("this start", f"{seconds:.1f} s")
        table.add_row("report", folder.join(REPORT) if folder.is_local else f"{folder.url}/{REPORT}")
        Console(highlight=False).print(table)
        if counts["shards_left"]:
            console.print(f"[yellow]{counts['shards_left']} shards are not made yet; start the same command again[/]")


def add_run_options(parser: JobParser, inputs: str) -> None:
    """The options that every run has."""
    parser.add_argument("--input", type=str, nargs="+", help=inputs)
    parser.add_argument("--output", type=str | None, help="folder or s3:// prefix of the run")
    parser.add_argument("--plan", default=False, action="store_true", help="show work and cost, write nothing")
    parser.add_argument("--retry_rejects", default=False, action="store_true", help="try the run's rejects again")
    parser.add_argument("--only", type=str | None, help="with --retry-rejects: only this error type")


def check_run_options(options: Any, inputs: str) -> None:
    """Ends the job where options do not go together.

    Args:
        inputs: What --input names.
    """
    if options.output is None and not options.plan:
        fail("--output is missing: name the folder or s3:// prefix for the run (or use --plan to only look)")
    if options.only and not options.retry_rejects:
        fail("--only goes with --retry-rejects")
    if options.plan and options.retry_rejects:
        fail("--plan shows new work only; `videolavit inspect RUN` shows what --retry-rejects would try")
    if not options.input and not options.retry_rejects:
        fail(f"--input is missing: name the {inputs}")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
