"""Decompose a corpus of videos into Parquet clip shards of keyframes and MPEG-4 motion vectors.

The output folder is the run: `clips/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Starting the
same command again continues an interrupted run, and does the new part of a grown input.
"""

import sys
from collections.abc import Sequence
from functools import partial

from pipelines.common import WorkerSettings
from pipelines.decompose import DecomposeRequest, decompose, plan_decomposition
from videolavit.records.samples import SampleSettings
from videolavit.records.storage import StorageSettings

from .common import JobParser, add_storage_options, pick, user_errors
from .runs import add_run_options, run_settings, show_run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        request = DecomposeRequest(
            inputs=options.input or (),
            output=options.output,
            text_column=options.text_column,
            run=run_settings(options, "videos"),
            sample=pick(SampleSettings, options),
            workers=pick(WorkerSettings, options),
            storage=pick(StorageSettings, options),
        )
    plan = partial(plan_decomposition, request) if options.plan else None
    sys.exit(show_run(plan, partial(decompose, request)))


def _parser() -> JobParser:
    parser = JobParser("decompose", __doc__)
    add_run_options(
        parser,
        "folder, glob, manifest (.parquet, .jsonl, .csv with a `video` column, and `start` and `end` for ranges), "
        "Parquet with videos in it, .tar, or video; local, s3://, https:// or hf://",
    )
    parser.add_argument("--text_column", type=str | None, help="caption column of a manifest (default: text)")
    parser.add_class_arguments(SampleSettings)
    parser.add_class_arguments(WorkerSettings)
    add_storage_options(parser, with_tables=True)
    return parser


if __name__ == "__main__":
    main()
