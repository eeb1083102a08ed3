"""Planned shards on their way to workers: the driver knows their names, and rows are read when workers need them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from videolavit.records.shards import RUN_FILE, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.traffic import with_traffic, without_traffic

from .common import from_blocks
from .faults import OutputFails, check_output
from .shard_records import node_address

PLAN_READERS = 2
"""Plans that are read at once. A plan is some 256 shards."""


@dataclass(frozen=True)
class WaitingShards:
    """Shards that are planned and not committed.

    Args:
        plans: Names of plans, each with the names of those of its shards.
        samples: Number of samples in all of them.
    """

    plans: list[tuple[str, list[str]]]
    samples: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return sum(len(shards) for _, shards in self.plans)


class PlanUnreadable(RuntimeError):
    """A plan could not be read while its shards were handed to workers."""


def waiting_shards(ledger: Ledger) -> WaitingShards:
    """Shards of a run that are left, the oldest plan first."""
    plans, samples = [], 0
    for name, sizes in ledger.pending():
        plans.append((name, sorted(sizes)))
        samples += sum(sizes.values())
    return WaitingShards(plans, samples)


def feed(shards: WaitingShards, folder: Folder) -> "ray.data.Dataset":
    """Dataset of the shards, a row each; `planned_rows` reads such a row. Of each plan the most work comes first.

    Plans are read on this node, where what waits outlives the workers.
    """
    blocks = [pa.table({"plan": [name], "shards": [names]}) for name, names in shards.plans]
    here = ray.get_runtime_context().get_node_id()
    return from_blocks(blocks).map_batches(
        shard_blocks,
        fn_kwargs={"output": folder.url, "storage": folder.settings},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(PLAN_READERS, len(blocks))),
        num_cpus=0,
        label_selector={"ray.io/node-id": here},
    )


def planned_rows(block: pa.Table) -> pa.Table:
    """Rows of the plan of the shard in a block.

    Raises:
        PlanUnreadable: they could not be read.
    """
    block = without_traffic(block)
    if block["error"][0].as_py() is not None:
        raise PlanUnreadable(block["error"][0].as_py())
    return pa.ipc.open_stream(block["rows"][0].as_buffer()).read_all()


def shard_blocks(plans: pa.Table, output: str, storage: StorageSettings) -> Iterator[pa.Table]:
    """Blocks of the shards of plans, a row each.

    Args:
        plans: Names of plans, with the names of those of their shards that are wanted.
    """
    ledger = Ledger(Folder(output, storage))
    for one in plans.to_pylist():
        try:
            shards = _by_work(ledger.plan(one["plan"]), one["shards"])
        except Exception as error:  # an exception here would lose the shards without a word
            reason = _why_unread(ledger.folder, error)
            yield from (_block(name, None, reason) for name in one["shards"])
            continue
        for name, rows in shards:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows)
            yield _block(name, sink.getvalue().to_pybytes(), None)


def _why_unread(folder: Folder, error: Exception) -> str:
    """Reason why a plan could not be read: the output, where it does not answer at all, otherwise the plan."""
    try:
        check_output(folder, RUN_FILE, node_address())
    except OutputFails as failure:
        return str(failure)
    return f"its plan cannot be read: {error!r}"


def _by_work(plan: pa.Table, names: list[str]) -> list[tuple[str, pa.Table]]:
    """Rows of the named shards of a plan, the most work first."""
    plan = plan.filter(pc.is_in(plan["shard"], pa.array(names, pa.string()))).combine_chunks()
    found = plan["shard"].to_pylist()
    starts = [index for index, name in enumerate(found) if not index or name != found[index - 1]]
    ends = zip(starts, [*starts[1:], len(found)], strict=True)
    shards = [(found[start], plan.slice(start, end - start)) for start, end in ends]
    return sorted(shards, key=lambda shard: -(pc.sum(shard[1]["cost"]).as_py() or 0.0))


def _block(name: str, rows: bytes | None, error: str | None) -> pa.Table:
    columns = {
        "shard": pa.array([name], pa.string()),
        "rows": pa.array([rows], pa.large_binary()),
        "error": pa.array([error], pa.string()),
    }
    return with_traffic(pa.table(columns))
