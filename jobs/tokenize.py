"""Tokenize clip shards, videos, images and texts into Parquet token shards.

The output folder is the run: `tokens/` (shards), `plan/`, `rejects.parquet`, `run.json`, `report.html`. Videos are
decomposed on the way. Starting the same command again continues an interrupted run, and does the new part of a grown
input.
"""

import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.common import WorkerSettings
from pipelines.tokenize import (
    TokenizerSettings,
    TokenizeTask,
    commit_token_plan,
    device_share,
    plan_samples,
    tokenize_shards,
)
from videolavit.records.corpus import CorpusSettings, list_corpus
from videolavit.records.identity import IdentityMismatch
from videolavit.records.inputs import InputError
from videolavit.records.prepare import PrepareSettings
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import TOKENS, Ledger
from videolavit.records.storage import Folder, StorageError, StorageSettings
from videolavit.records.token_report import write_token_report
from videolavit.records.tokenizers import EncodeSettings, Tokenizers

from .common import JobParser, console, pick, ray_runtime, user_errors
from .planning import Planner, Rows
from .run import Run, add_run_options, check_run_options


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the job; exits with 0 when the run is complete, 1 when work is left, 2 on a user's mistake."""
    options = _parser().parse(argv)
    with user_errors(ValueError):
        corpus, encode = pick(CorpusSettings, options), pick(EncodeSettings, options)
        settings, workers = pick(SampleSettings, options), pick(WorkerSettings, options)
        pool = pick(TokenizerSettings, options)
    storage = pick(StorageSettings, options)
    check_run_options(options, "clips, videos, images or texts")
    with user_errors(InputError, StorageError, IdentityMismatch):
        ledger = Ledger(Folder(options.output, storage), TOKENS) if options.output else None
        tokenizers = _read_tokenizers(encode.model)
        sources = list_corpus(options.input, storage, corpus) if options.input else None
        with ray_runtime():
            prepare = PrepareSettings(settings, corpus, tokenizers.picture_size, tokenizers.motion_size)
            task = TokenizeTask(prepare=prepare, encode=encode, tokenizers=tokenizers, gpu_fraction=device_share(pool))
            run = TokenizeRun(ledger, TokenPlanner(ledger, task.prepare, workers, storage), task, pool)
            run.check_identity(must_exist=options.retry_rejects)
            run.start(sources, options)


def _parser() -> JobParser:
    parser = JobParser("tokenize", __doc__)
    add_run_options(
        parser,
        "run of `videolavit decompose` or its shards; folder, glob, table (.parquet, .jsonl, .csv), .tar or file of "
        "videos, images or texts; local or s3://",
    )
    parser.add_class_arguments(EncodeSettings)
    parser.add_class_arguments(CorpusSettings)
    parser.add_class_arguments(SampleSettings)
    parser.add_class_arguments(TokenizerSettings)
    parser.add_class_arguments(WorkerSettings)
    parser.add_class_arguments(StorageSettings)
    return parser


def _read_tokenizers(model: str) -> Tokenizers:
    with console.status("reading the tokenizers"):
        # Only here: torch and the libraries around it take seconds to load.
        from videolavit.models.network import ModelError
        from videolavit.records.encode import read_tokenizers

        with user_errors(ModelError):
            return read_tokenizers(model)


class TokenPlanner(Planner[PrepareSettings]):
    """Plans clips, segments of videos, images and texts."""

    def read(self, sources: pa.Table) -> Iterable[pa.Table]:
        return plan_samples(sources, self.settings.sample, self.settings.corpus, self.storage, self.workers)

    def publish(self, planned: pa.Table) -> bool:
        assert self.ledger is not None
        return commit_token_plan(self.ledger, planned, self.generation)

    def figures(self, rows: Rows) -> dict[str, str]:
        kinds = Counter(row["kind"] for row in rows)
        clips = sum(row["num_clips"] or 0 for row in rows) - kinds["image"]
        return {
            "clips": f"~{clips:,}",
            "images": f"{kinds['image']:,}",
            "texts": f"{kinds['text']:,}",
            "core-hours before the tokenizers": f"~{sum(row['cost'] for row in rows) / 3600:.2g}",
        }


class TokenizeRun(Run):
    """A run of tokenizing."""

    name = "tokenize"
    planner: TokenPlanner

    def __init__(
        self, ledger: Ledger | None, planner: TokenPlanner, task: TokenizeTask, pool: TokenizerSettings
    ) -> None:
        super().__init__(ledger, planner)
        self.task, self.pool = task, pool

    def identity(self) -> dict[str, Any]:
        decomposition = self.task.prepare.sample.identity()
        task, tokenizers = self.task, self.task.tokenizers
        batch = task.encode.batch(tokenizers, task.device)
        return decomposition | {
            "kind": TOKENS.folder,
            "settings": decomposition["settings"] | {"dtype": task.encode.dtype, "batch": batch},
            "tokenizers": {"digests": tokenizers.digests, "num_codes": tokenizers.num_codes},
            "device": task.device,
            "torch": importlib.metadata.version("torch"),
            "numpy": importlib.metadata.version("numpy"),
        }

    def work(self, shards: list[pa.Table], folder: Folder) -> Iterator[dict[str, Any]]:
        return tokenize_shards(shards, folder, self.task, self.planner.workers, self.pool)

    def progress(self, counts: Mapping[str, float], seconds: float) -> str:
        parts = [f"{counts[name]:.0f} {name}" for name in ("clips", "images", "texts", "rejects") if counts[name]]
        return ", ".join([*parts, f"{counts['tokens'] / seconds:,.0f} tokens/s"])

    def counts(self, totals: Counter[str]) -> dict[str, Any]:
        names = ("videos", "images", "texts", "clips", "visual_tokens", "motion_tokens")
        return {name: totals[name] for name in names}

    def summary(self, counts: dict[str, Any]) -> list[tuple[str, str]]:
        names = ("videos", "clips", "images", "texts", "visual_tokens", "motion_tokens")
        return [(name.replace("_", " "), f"{counts[name]:,}") for name in names]

    def write_report(self, folder: Folder, run: dict[str, Any], rejects: list[dict[str, Any]]) -> None:
        write_token_report(folder, run, rejects)


if __name__ == "__main__":
    main()
