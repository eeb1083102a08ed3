"""Show how a run fares, from another terminal: rate, time left, rejects, nodes that fail, shards that are stuck.

Reads the folder of a run of `decompose`, `tokenize` or `train`, on a disk or S3, and needs no Ray.
"""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from pipelines.status import RunStatus, run_status
from videolavit.records.storage import StorageError, StorageSettings

from .common import JobParser, add_storage_options, foreign, user_errors

MOST_SHARDS = 10
"""Stuck shards that are shown."""


def main(argv: Sequence[str] | None = None) -> None:
    """Prints tables; exits with 1 if shards are stuck or failed, 2 if there is no run."""
    parser = JobParser("status", __doc__)
    parser.add_argument("run", type=str, help="folder or s3:// prefix of a run")
    add_storage_options(parser)
    options = parser.parse(argv)
    with user_errors(StorageError, OSError):
        status = run_status(options.run, StorageSettings(options.s3_endpoint))
    print_status(status)
    sys.exit(1 if status.stuck or status.failing_nodes else 0)


def print_status(status: RunStatus) -> None:
    """Prints the facts of a run, and tables of what is wrong with it."""
    out = Console(highlight=False)
    facts = Table(show_header=False, box=None)
    for name, value in status.facts:
        facts.add_row(foreign(name, "bold"), foreign(value))
    out.print(facts)
    _print_counts(out, "rejects", "reason", status.rejects)
    _print_counts(out, "shards that failed", "node", status.failing_nodes)
    for line in status.live.failures if status.live is not None else ():
        out.print(foreign(f"failed: {line}"), soft_wrap=True)
    if status.stuck:
        table = Table("shard", "node", "in work, s", "silent, s", title="stuck")
        for one in status.stuck[:MOST_SHARDS]:
            silent = one["silent"] + status.age
            table.add_row(foreign(one["shard"]), foreign(one["node"]), f"{one['seconds']:.0f}", f"{silent:.0f}")
        if len(status.stuck) > MOST_SHARDS:
            table.caption = f"and {len(status.stuck) - MOST_SHARDS} more"
        out.print(table)


def _print_counts(out: Console, title: str, heading: str, counts: Mapping[str, int]) -> None:
    if counts:
        table = Table(heading, "number", title=title)
        for name, number in counts.items():
            table.add_row(foreign(name), f"{number:,}")
        out.print(table)


if __name__ == "__main__":
    main()
