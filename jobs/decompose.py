"""Decompose a corpus of videos into Parquet clip shards of keyframes and MPEG-4 motion vectors.

The output folder is the run: `clips/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Starting the
same command again continues an interrupted run, and does the new part of a grown input.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.common import WorkerSettings
from pipelines.decompose import commit_plan, decompose_shards, plan_segments
from videolavit.records.identity import IdentityMismatch
from videolavit.records.inputs import InputError, list_sources
from videolavit.records.report import write_clip_report
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger
from videolavit.records.storage import Folder, StorageError, StorageSettings

from .common import JobParser, pick, ray_runtime, user_errors
from .planning import Planner, Rows
from .run import Run, add_run_options, check_run_options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        settings, workers = pick(SampleSettings, options), pick(WorkerSettings, options)
    storage = pick(StorageSettings, options)
    check_run_options(options, "videos")
    with user_errors(InputError, StorageError, IdentityMismatch):
        ledger = Ledger(Folder(options.output, storage)) if options.output else None
        run = DecomposeRun(ledger, ClipPlanner(ledger, settings, workers, storage))
        run.check_identity(must_exist=options.retry_rejects)
        sources = list_sources(options.input, storage, options.text_column) if options.input else None
        with ray_runtime():
            run.start(sources, options)


def _parser() -> JobParser:
    parser = JobParser("decompose", __doc__)
    add_run_options(
        parser,
        "folder, glob, manifest (.parquet, .jsonl, .csv with a `video` column), .tar, or video; local or s3://",
    )
    parser.add_argument("--text_column", type=str | None, help="caption column of a manifest (default: text)")
    parser.add_class_arguments(SampleSettings)
    parser.add_class_arguments(WorkerSettings)
    parser.add_class_arguments(StorageSettings)
    return parser


class ClipPlanner(Planner[SampleSettings]):
    """Plans videos as segments."""

    def read(self, sources: pa.Table) -> Iterable[pa.Table]:
        return plan_segments(sources, self.settings, self.storage, self.workers)

    def publish(self, planned: pa.Table) -> bool:
        assert self.ledger is not None
        return commit_plan(self.ledger, planned, self.generation)

    def figures(self, rows: Rows) -> dict[str, str]:
        seconds = [row["planned_seconds"] or 0.0 for row in rows]
        return {
            "hours": f"{sum(seconds) / 3600:.2f}",
            "clips": f"~{sum(-(-int(length * self.settings.fps) // 24) for length in seconds):,}",
            "core-hours": f"~{sum(row['cost'] for row in rows) / 3600:.2g}",
        }


class DecomposeRun(Run):
    """A run of decomposition."""

    name = "decompose"
    planner: ClipPlanner

    def identity(self) -> dict[str, Any]:
        return self.planner.settings.identity()

    def work(self, shards: list[pa.Table], folder: Folder) -> Iterator[dict[str, Any]]:
        return decompose_shards(shards, folder, self.planner.settings, self.planner.workers)

    def progress(self, counts: Mapping[str, float], seconds: float) -> str:
        speed = counts["video_seconds"] / seconds
        return f"{counts['clips']:.0f} clips, {counts['rejects']:.0f} rejects, {speed:.1f}x real time"

    def counts(self, totals: Counter[str]) -> dict[str, Any]:
        return {"clips": totals["clips"], "frames": totals["frames"]}

    def summary(self, counts: dict[str, Any]) -> list[tuple[str, str]]:
        speed = counts["video_hours"] / counts["core_hours"] if counts["core_hours"] else 0.0
        return [
            ("clips", f"{counts['clips']:,}"),
            ("video", f"{counts['video_hours']:.3f} h"),
            ("speed", f"{speed:.1f} video hours a core hour"),
        ]

    def write_report(self, folder: Folder, run: dict[str, Any], rejects: list[dict[str, Any]]) -> None:
        write_clip_report(folder, run, rejects)


if __name__ == "__main__":
    main()
