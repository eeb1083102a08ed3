"""Two runs that plan at the same time: whatever the order of their steps, no source is planned twice."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from jobs.planning import Planner

from jobs.decompose import ClipPlanner
from pipelines.common import WorkerSettings
from videolavit.records.inputs import InputError, list_sources
from videolavit.records.plan import whole_source
from videolavit.records.samples import SampleSettings
from videolavit.records.shards import Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings


class WithoutRay(ClipPlanner):
    """Plans every source as one segment, without looking at it."""

    def read(self, sources: pa.Table) -> Iterable[pa.Table]:
        rows = [{"shard": None} | whole_source(row, self.settings) for row in sources.to_pylist()]
        return [pa.Table.from_pylist(rows)]


def _planner(folder: Path) -> WithoutRay:
    storage = StorageSettings()
    return WithoutRay(Ledger(Folder(str(folder), storage)), SampleSettings(), WorkerSettings(), storage)


def _sources(tmp_path: Path, *names: str) -> pa.Table:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    return list_sources([str(tmp_path / name) for name in names], StorageSettings())


def _planned(planner: Planner) -> list[str]:
    assert planner.ledger is not None
    return [url.rsplit("/", 1)[1] for plan in planner.ledger.planned() for url in plan["url"].to_pylist()]


def test_of_two_plans_the_first_wins(tmp_path: Path) -> None:
    sources = _sources(tmp_path, "a.mp4", "b.mp4")
    first, second = _planner(tmp_path / "out"), _planner(tmp_path / "out")
    for_first, for_second = first.new(sources), second.new(sources)  # both see an empty run
    first.commit(for_first)
    with pytest.raises(SystemExit) as end:
        second.commit(for_second)
    assert end.value.code == 2
    assert sorted(_planned(first)) == ["a.mp4", "b.mp4"]
    grown = _sources(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    again = _planner(tmp_path / "out")
    again.commit(again.new(grown))
    assert sorted(_planned(again)) == ["a.mp4", "b.mp4", "c.mp4"]


def test_of_two_retries_the_first_wins(tmp_path: Path) -> None:
    planner = _planner(tmp_path / "out")
    planner.commit(planner.new(_sources(tmp_path, "a.mp4")))
    _reject_all(planner)
    first, second = _planner(tmp_path / "out"), _planner(tmp_path / "out")
    assert first.ledger is not None
    assert second.ledger is not None
    ready = second.planned(_sources(tmp_path, "a.mp4"))
    second.generation = len(second.ledger.plans())  # as commit_retries takes it, before it looks at the rejects
    first.commit_retries(None)
    assert not second.publish(ready)
    assert _planned(first) == ["a.mp4", "a.mp4"]
    second.commit_retries(None)  # the reject is no longer a standing one
    assert _planned(first) == ["a.mp4", "a.mp4"]


def test_columns_keep_their_types_through_a_run(tmp_path: Path) -> None:
    for name, value in (("one", "1"), ("two", '"x"')):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"video": "{name}.mp4", "id": {value}}}\n')
    planner = _planner(tmp_path / "out")
    planner.commit(planner.new(list_sources([str(tmp_path / "one.jsonl")], StorageSettings())))
    with pytest.raises(InputError, match="column `id` is int64 in this run, string in the new manifest"):
        planner.new(list_sources([str(tmp_path / "two.jsonl")], StorageSettings()))


def _reject_all(planner: Planner) -> None:
    assert planner.ledger is not None
    for plan in planner.ledger.planned():
        for row in plan.to_pylist():
            with ShardWriter(planner.ledger.folder, row["shard"], []) as writer:
                writer.reject({"sample_id": row["sample_id"], "error_type": "CorruptVideo", "attempts": 1})
                writer.commit()
