"""Requests to S3 of the steps of a run, by the number of its shards and of their samples, on fabricated runs.

python -m benchmarks.requests s3://bucket/prefix [--output bench-output]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.decompose import DecomposeRequest, Decomposition
from pipelines.feeding import shard_blocks, waiting_shards
from pipelines.run import finish_run
from videolavit.records.inspection import inspect
from videolavit.records.rows import PlanRow, Reject, plan_rows_to
from videolavit.records.shards import CLIP_SHARDS, RUN_FILE, Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.traffic import RECEIVED, S3_TRAFFIC, SENT, without_traffic

from .shared import console, result_table

SIZES = ((100, 10), (100, 100), (400, 10))
"""Shards of the runs, and samples of each shard."""


def measure(url: str, shards: int, samples: int) -> dict[str, dict[str, int]]:
    """Requests of each step of a run of one plan, by operation."""
    ledger = Ledger(Folder(url, StorageSettings()))
    plan = _plan(shards, samples)
    names = sorted(set(plan["shard"].to_pylist()))
    pipeline = Decomposition.of(DecomposeRequest())
    ledger.folder.replace(RUN_FILE, b'{"identity": {}, "complete": false}')

    def publish() -> None:
        assert ledger.add_plan(0, plan, is_new=True)

    def look() -> None:
        waiting_shards(ledger)

    def feed() -> None:
        fed = list(shard_blocks(pa.table({"plan": ["00000.parquet"], "shards": [names]}), url, StorageSettings()))
        assert without_traffic(pa.concat_tables(fed)).num_rows == shards

    def commit() -> None:
        for name in names:
            _commit(ledger.folder, name, samples)

    def finish() -> None:
        assert finish_run(pipeline, ledger, {}, 0.0).is_complete

    steps: dict[str, Callable[[], object]] = {
        "publish a plan": publish,
        "look for shards that are left": look,
        "hand the plan to workers": feed,
        "commit the shards": commit,
        "finish": finish,
        "look again, nothing is left": look,
        "finish again": finish,
        "inspect": lambda: inspect(url),
    }
    found = {}
    for name, step in steps.items():
        S3_TRAFFIC.take()
        step()
        found[name] = {name: count for name, count in S3_TRAFFIC.take().items() if name not in (RECEIVED, SENT)}
    return found


def _plan(shards: int, samples: int) -> pa.Table:
    rows = [
        PlanRow(source=name, url=name, kind="video", sample_id=f"{number:032x}", planned_seconds=10.0, cost=2.0)
        for number, name in enumerate(f"{number}.mp4" for number in range(shards * samples))
    ]
    names = [f"00000-{number // samples:06d}-00000000.parquet" for number in range(len(rows))]
    plan = plan_rows_to(rows)
    return plan.set_column(plan.schema.get_field_index("shard"), "shard", pa.array(names))


def _commit(folder: Folder, name: str, samples: int) -> None:
    """Commits a shard whose samples are all rejected: its size is that of its footer."""
    first = int(name.split("-")[1]) * samples
    with ShardWriter(folder, name, [], CLIP_SHARDS) as writer:
        for number in range(first, first + samples):
            writer.reject(
                Reject(
                    sample_id=f"{number:032x}",
                    source=f"{number}.mp4",
                    start_seconds=0.0,
                    stage="decompose",
                    error_type="CorruptVideo",
                    message="no frame could be decoded",
                    attempts=1,
                    seconds=0.1,
                )
            )
        assert writer.commit()


def main(argv: Sequence[str] | None = None) -> None:
    """Measures runs of several sizes and prints the requests of each step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.requests", description="Requests of a run to S3.")
    parser.add_argument("url", help="unused prefix on S3; the server and the credentials are those of the environment")
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="folder of the JSON file")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    sizes = {f"{shards} shards of {samples}": (shards, samples) for shards, samples in SIZES}
    found = {name: measure(f"{options.url}/{name.replace(' ', '-')}", *size) for name, size in sizes.items()}
    (options.output / "requests.json").write_text(json.dumps(found, indent=2) + "\n")
    table = result_table("requests to S3", "step", *sizes)
    for step in next(iter(found.values())):
        table.add_row(step, *(_shown(run[step]) for run in found.values()))
    console.print(table)


def _shown(counts: dict[str, int]) -> str:
    each = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
    return f"{sum(counts.values())} ({each})"


if __name__ == "__main__":
    main()
