"""Calibration of a run's estimate on its first shards."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import estimate
from pipelines.estimate import Calibration, calibrate, calibration_of, shard_costs
from videolavit.records.cost import COST_SPREAD
from videolavit.records.rows import PlanRow, plan_rows_to
from videolavit.records.schema import CLIPS, WORK_SECONDS
from videolavit.records.shards import Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings


def run(folder: Path, costs: dict[str, float], work: dict[str, float]) -> Ledger:
    """A run with a plan and some committed shards."""
    ledger = Ledger(Folder(str(folder), StorageSettings()))
    rows = [
        PlanRow(source=name, url=name, kind="video", sample_id=name, planned_seconds=1.0, cost=cost / 2, shard=name)
        for name, cost in costs.items()
        for _ in range(2)
    ]
    ledger.add_plan(0, plan_rows_to(rows, []))
    for name, seconds in work.items():
        table = pa.Table.from_pylist([{"sample_id": name, "source": name, "num_clips": 0, "clips": []}], schema=CLIPS)
        with ShardWriter(ledger.folder, name, []) as writer:
            writer.add(table.replace_schema_metadata({WORK_SECONDS: str(seconds)}))
            writer.commit()
    return ledger


def test_the_first_shards_say_how_fast_the_machine_is(tmp_path: Path) -> None:
    costs = {f"{number:05d}.parquet": 10.0 for number in range(8)}
    found = calibrate(run(tmp_path, costs, dict.fromkeys(list(costs)[:6], 5.0)))
    assert (found.factor, found.shards) == (pytest.approx(0.5), 6)
    assert found.spread == pytest.approx(estimate.LEAST_SPREAD)


def test_a_run_without_shards_has_the_model_alone(tmp_path: Path) -> None:
    assert calibrate(run(tmp_path, {"0.parquet": 3.0}, {})) == Calibration()


def test_shards_of_rejects_say_nothing(tmp_path: Path) -> None:
    costs = {"0.parquet": 3.0, "1.parquet": 4.0}
    found = calibrate(run(tmp_path, costs, {"0.parquet": 0.0, "1.parquet": 8.0}))
    assert (found.factor, found.shards) == (pytest.approx(2.0), 1)


def test_few_or_uneven_shards_leave_a_wide_interval() -> None:
    assert calibration_of([(1.0, 2.0)] * 3) == Calibration(2.0, COST_SPREAD, 3)
    even = calibration_of([(1.0, 1.9), (1.0, 2.1)] * 8)
    uneven = calibration_of([(1.0, 1.0), (1.0, 3.0)] * 8)
    assert estimate.LEAST_SPREAD < even.spread < uneven.spread <= COST_SPREAD


def test_costs_are_those_of_whole_shards(tmp_path: Path) -> None:
    costs = {"0.parquet": 3.0, "1.parquet": 4.0}
    assert dict(shard_costs(run(tmp_path, costs, {}))) == costs
