"""Tokenize clip shards, videos, images and texts into Parquet token shards.

The output folder is the run: `tokens/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Videos are
decomposed on the way. Starting the same command again continues an interrupted run, and does the new part of a grown
input.
"""

import sys
from collections.abc import Sequence
from functools import partial

from pipelines.common import WorkerSettings
from pipelines.tokenize import EncoderPoolSettings, TokenizeRequest, plan_tokenization, tokenize
from videolavit.models.errors import ModelError
from videolavit.records.inputs import InputSettings
from videolavit.records.samples import SampleSettings
from videolavit.records.storage import StorageSettings
from videolavit.records.tokenizer_info import EncodeSettings

from .common import JobParser, add_storage_options, pick, user_errors
from .runs import add_run_options, run_settings, show_run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        request = TokenizeRequest(
            inputs=options.input or (),
            output=options.output,
            run=run_settings(options, "clips, videos, images or texts"),
            encode=pick(EncodeSettings, options),
            listing=pick(InputSettings, options),
            sample=pick(SampleSettings, options),
            encoders=pick(EncoderPoolSettings, options),
            workers=pick(WorkerSettings, options),
            storage=pick(StorageSettings, options),
        )
    plan = partial(plan_tokenization, request) if options.plan else None
    sys.exit(show_run(plan, partial(tokenize, request), ModelError))


def _parser() -> JobParser:
    parser = JobParser("tokenize", __doc__)
    add_run_options(
        parser,
        "run of `videolavit decompose` or its shards; folder, glob, table (.parquet, .jsonl, .csv), .tar or file of "
        "videos, images or texts; local, s3://, https:// or hf://",
    )
    parser.add_class_arguments(EncodeSettings)
    parser.add_class_arguments(InputSettings)
    parser.add_class_arguments(SampleSettings)
    parser.add_class_arguments(EncoderPoolSettings)
    parser.add_class_arguments(WorkerSettings)
    add_storage_options(parser, with_tables=True)
    return parser


if __name__ == "__main__":
    main()
