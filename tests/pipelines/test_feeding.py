"""Shards that are left, on their way to workers."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.feeding import PlanUnreadable, WaitingShards, planned_rows, shard_blocks, waiting_shards
from videolavit.records.rows import PlanRow, plan_rows_to
from videolavit.records.shards import CLIP_SHARDS, PLAN_FOLDER, RUN_FILE, Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings


def _ledger(folder: Path) -> Ledger:
    """A plan of three shards, of which the first is there."""
    ledger = Ledger(Folder(str(folder), StorageSettings()))
    rows = [
        PlanRow(sample_id=f"{name}{part}", source="a", url="a", kind="video", cost=cost, shard=f"00000-{name}.parquet")
        for name, cost in (("x", 1.0), ("y", 1.0), ("z", 5.0))
        for part in range(2)
    ]
    ledger.add_plan(0, plan_rows_to(rows, []))
    with ShardWriter(ledger.folder, "00000-x.parquet", [], CLIP_SHARDS) as writer:
        writer.commit()
    return ledger


def _blocks(ledger: Ledger, waiting: WaitingShards) -> list[pa.Table]:
    plans = pa.table({"plan": [name for name, _ in waiting.plans], "shards": [names for _, names in waiting.plans]})
    return list(shard_blocks(plans, ledger.folder.url, ledger.folder.settings))


def test_what_is_left_is_fed_as_planned_the_most_work_first(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    plan = ledger.plan("00000.parquet")
    waiting = waiting_shards(ledger)
    assert (waiting.count, waiting.samples) == (2, 4)
    blocks = _blocks(ledger, waiting)
    assert [block.num_rows for block in blocks] == [1, 1]  # Ray would cut a block of several rows
    assert [planned_rows(block).to_pylist() for block in blocks] == [
        plan.slice(4, 2).to_pylist(),
        plan.slice(2, 2).to_pylist(),
    ]
    assert planned_rows(blocks[0]).schema.equals(plan.schema, check_metadata=True)


def test_shards_of_a_plan_that_cannot_be_read_are_not_lost_in_silence(tmp_path: Path) -> None:
    ledger = _ledger(tmp_path)
    waiting = waiting_shards(ledger)
    (tmp_path / PLAN_FOLDER / "00000.parquet").write_bytes(b"cut")
    for is_there, reason in ((False, "the output cannot be written: "), (True, "its plan cannot be read: .*Parquet")):
        if is_there:  # the driver's folder, not another one at its path
            (tmp_path / RUN_FILE).touch()
        blocks = _blocks(ledger, waiting)
        assert [block["shard"][0].as_py() for block in blocks] == ["00000-y.parquet", "00000-z.parquet"]
        for block in blocks:
            with pytest.raises(PlanUnreadable, match=reason):
                planned_rows(block)
