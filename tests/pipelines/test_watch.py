"""Shards in work, as the driver watches them; no Ray is needed."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import status as job
from pipelines import live, watch
from pipelines.live import LIVE_FILE, LiveFile, LiveRun
from pipelines.shard_records import Listener, ShardRecord, ShardTally, WorkThread
from pipelines.status import run_status
from pipelines.watch import ShardWatch
from videolavit.progress import Progress
from videolavit.records.inspection import NotARun


class Clock:
    """Time that tests move on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(shard: str, node: str = "10.0.0.1", error: str | None = None, **counts: float) -> ShardRecord:
    return ShardRecord(shard=shard, node=node, counts=counts, rejected=[], error=error)


def test_a_silent_shard_is_named_once_with_its_node() -> None:
    clock = Clock()
    shards = ShardWatch(10, clock)
    shards.note(record("a", "10.0.0.1"))
    clock.now += watch.SILENT_AFTER + 1
    shards.note(record("b", "10.0.0.2", samples=2))
    assert [(one.shard, one.node) for one in shards.newly_silent()] == [("a", "10.0.0.1")]
    assert not shards.newly_silent()
    assert not shards.stands_still, "another shard is heard of"
    shards.note(record("a", "10.0.0.3"))  # another worker has it now
    assert not shards.silent()
    clock.now += watch.SILENT_AFTER + 1
    assert {one.shard for one in shards.newly_silent()} == {"a", "b"}
    assert shards.stands_still
    assert shards.silence() == "a on 10.0.0.3, b on 10.0.0.2"


def test_shards_that_end_are_counted_for_their_nodes() -> None:
    clock = Clock()
    shards = ShardWatch(4, clock)
    shards.note(record("a", samples=1))
    clock.now += 10
    shards.note(record("a", samples=1, shards=1))
    shards.note(record("b", "10.0.0.2", error="b: it broke"))
    assert not shards.working
    assert (shards.nodes["10.0.0.1"].made, shards.nodes["10.0.0.2"].failed) == (1, 1)
    assert list(shards.failures) == ["b: it broke (on 10.0.0.2)"]
    assert shards.rate == pytest.approx(0.2)


def test_workers_that_never_begin_do_not_count_as_silent() -> None:
    clock = Clock()
    shards = ShardWatch(4, clock)
    clock.now += watch.SILENT_AFTER + 1
    assert not shards.stands_still
    assert not shards.never_begins
    clock.now += watch.UNBEGUN_LIMIT
    assert shards.never_begins


def test_an_actor_reports_while_it_works_on_one_thing() -> None:
    """Also within a sample, whose decoding may take minutes."""
    go, tally = threading.Event(), ShardTally("a", "10.0.0.1")

    def work() -> int:
        tally.add(samples=1)
        tally.reject("CorruptVideo")
        go.wait(60)
        return 7

    reports = WorkThread().run(work, tally.alive)
    first = next(reports).to_pylist()[0]
    assert (first["shard"], dict(first["counts"]), first["rejected"]) == ("a", {"samples": 1.0}, ["CorruptVideo"])
    go.set()
    with pytest.raises(StopIteration) as end:
        next(reports)
    assert end.value.value == 7


def test_a_source_of_records_that_blocks_does_not_block_its_listener() -> None:
    go = threading.Event()

    def records() -> Iterator[ShardRecord]:
        yield record("a")
        go.wait(60)
        raise RuntimeError("it broke")

    listener = Listener(records())
    assert listener.next(30) == [record("a")]
    assert listener.next(0.01) == []
    go.set()
    with pytest.raises(RuntimeError, match="it broke"):
        listener.next(30)


def test_the_end_of_the_records_is_told() -> None:
    assert Listener(iter([])).next(30) is None


def write_live(folder: Path, **values: object) -> None:
    state = LiveRun(name="decompose", started=time.time() - 60, updated=time.time(), done=30, total=90, rate=0.5)
    for name, value in values.items():
        setattr(state, name, value)
    (folder / LIVE_FILE).write_bytes(state.to_json())


def test_status_of_a_data_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"identity": {"kind": "clips"}, "complete": False}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert "no work has begun" in run_status(str(tmp_path)).state
    stuck = {"shard": "00000-000001-aa.parquet", "node": "10.0.0.7", "seconds": 300.0, "silent": 200.0}
    well = {"shard": "00000-000002-bb.parquet", "node": "10.0.0.8", "seconds": 20.0, "silent": 2.0}
    nodes = {"10.0.0.8": {"made": 3, "failed": 0}, "10.0.0.9": {"made": 0, "failed": 2}}
    write_live(tmp_path, working=[stuck, well], nodes=nodes, rejects={"CorruptVideo": 4}, failures=["c: no space"])
    found = run_status(str(tmp_path))
    assert (found.state, found.is_running, found.seconds_left) == ("running", True, 120.0)
    assert found.stuck == [stuck]
    assert found.failing_nodes == {"10.0.0.9": 2}
    with pytest.raises(SystemExit) as end:
        job.main([str(tmp_path)])
    assert end.value.code == 1
    shown = capsys.readouterr().out
    for text in ("0.5 samples/s", "CorruptVideo", "10.0.0.9", "10.0.0.7", "c: no space", "30 of 90"):
        assert text in shown
    write_live(tmp_path, working=[stuck], updated=time.time() - 3600)
    assert run_status(str(tmp_path)).state == (
        "nothing was heard of it for 60 min: it was killed or is cut off; start it again"
    )
    (tmp_path / "run.json").write_text(json.dumps(run | {"complete": True, "counts": {"rejects_by_type": {"X": 1}}}))
    write_live(tmp_path, ended=True, done=90)
    found = run_status(str(tmp_path))
    assert (found.state, found.rejects, found.stuck) == ("complete", {"X": 1}, [])


def test_status_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 2.5}\n{"step": 20, "loss": 1.5}\n{"step": 3')
    write_live(tmp_path, name="vae", done=20, total=100, rate=2.0)
    found = run_status(str(tmp_path))
    assert (found.kind, found.state, found.seconds_left) == ("training", "running", 40.0)
    assert found.metrics == {"step": 20, "loss": 1.5}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotARun, match="it has neither"):
        run_status(str(tmp_path))


def test_a_state_that_cannot_be_written_ends_no_run() -> None:
    def write(_: bytes) -> None:
        raise OSError("no space left")

    LiveFile(write).update(lambda: LiveRun(name="x", started=0.0))
    assert live.LIVE_EVERY < watch.SILENT_AFTER


def test_what_a_training_waits_for_is_in_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LIVE_EVERY", 0.0)
    write = (tmp_path / LIVE_FILE).write_bytes
    with live.live_progress("vae", write, lambda progress: None) as note:
        note(Progress("nodes", message="waiting"))
        assert not (tmp_path / LIVE_FILE).exists()  # nothing has begun
        note(Progress("train", 5, 10, "step 5/10"))
        note(Progress("nodes", message="nothing heard of worker 1"))
        found = run_status(str(tmp_path))
    assert (found.live.message, found.live.done) == ("nothing heard of worker 1", 5)  # type: ignore[union-attr]
