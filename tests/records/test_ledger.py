"""The ledger of a run: what stands, and summaries of finished plans, which say nothing that the shards do not."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from tests.conftest import ROOT
from videolavit.records.inspection import RunFacts, inspect
from videolavit.records.names import NameIndex, repeated_hashes
from videolavit.records.rows import PlanRow, Reject, plan_rows_to
from videolavit.records.shards import PLAN_FOLDER, RUN_FILE, SUMMARY_FOLDER, Ledger, ShardWriter
from videolavit.records.storage import Folder, StorageSettings


def ledger_of(folder: Path | str) -> Ledger:
    return Ledger(Folder(str(folder), StorageSettings()))


def _ledger(folder: Path) -> Ledger:
    found = ledger_of(folder)
    found.folder.replace(RUN_FILE, b'{"identity": {}, "complete": false}')
    return found


def _row(sample: str, shard: str, source: str, url: str | None = None, seconds: float | None = 1.0) -> PlanRow:
    return PlanRow(
        sample_id=sample, source=source, url=url or source, kind="video", planned_seconds=seconds, shard=shard
    )


def _plan(*rows: PlanRow) -> pa.Table:
    return plan_rows_to(rows)


PLANS = (
    _plan(
        _row("a", "00000-0", "a.mp4"),
        _row("b0", "00000-0", "b.mp4"),
        _row("b1", "00000-1", "b.mp4"),
        _row("tar", "00000-1", "c.tar", seconds=None),
        _row("lost", "00000-2", "d.mp4", seconds=None),
        _row("unread", "00000-2", "e.mp4", seconds=None),
    ),
    _plan(_row("f", "00001-0", "f.mp4"), _row("g", "00001-0", "g.mp4", seconds=None)),
    # tries again: a sample as it was, members of a tar, a header that can be read now, and one that still cannot
    _plan(
        _row("b1", "00002-0", "b.mp4"),
        _row("c0", "00002-0", "c.tar/0.mp4", "c.tar"),
        _row("c1", "00002-0", "c.tar/1.mp4", "c.tar"),
        _row("d0", "00002-1", "d.mp4"),
        _row("unread", "00002-1", "e.mp4", seconds=None),
    ),
    _plan(_row("h", "00003-0", "h.mp4")),
)
STANDING = {
    **{"a": "00000-0", "b0": "00000-0", "b1": "00002-0", "c0": "00002-0", "c1": "00002-0", "d0": "00002-1"},
    **{"unread": "00002-1", "f": "00001-0", "g": "00001-0", "h": "00003-0"},
}
"""Shard that accounts for each sample."""


def _published(folder: Path, new: Sequence[int]) -> Ledger:
    ledger = _ledger(folder)
    for number, plan in enumerate(PLANS):
        assert ledger.add_plan(number, plan, number in new)
    return ledger


def test_what_stands_does_not_depend_on_what_is_known_to_be_new(tmp_path: Path) -> None:
    """Plans of earlier versions are compared row by row; of marked ones only what a retry touches."""
    pairs = {(row["sample_id"], row["shard"]) for plan in PLANS for row in plan.to_pylist()}
    compared = _published(tmp_path / "compared", ()).standing()
    marked = _published(tmp_path / "marked", (0, 1, 3)).standing()
    assert compared.planned == marked.planned
    for sample, shard in pairs:
        assert compared.holds(sample, shard) == marked.holds(sample, shard), (sample, shard)
    held = {sample: shard for sample, shard in pairs if marked.holds(sample, shard)}
    assert held == STANDING
    assert marked.planned == len(STANDING)
    assert "h" not in marked.moved  # no row of plans that nothing touches is held


def _commit(ledger: Ledger, shard: str, samples: Sequence[str]) -> None:
    with ShardWriter(ledger.folder, shard, []) as writer:
        for sample in samples:
            writer.reject(
                Reject(
                    sample_id=sample,
                    source=f"{sample}.mp4",
                    start_seconds=0.0,
                    stage="decompose",
                    error_type="CorruptVideo",
                    message="cut",
                    attempts=1,
                    seconds=0.5,
                )
            )
        assert writer.commit()


def _run(folder: Path) -> Ledger:
    """Two plans: all shards of the first are there, and one of two of the second."""
    ledger = _ledger(folder)
    first = [_row(str(index), f"00000-{index // 2}.parquet", f"{index}.mp4") for index in range(6)]
    second = [_row(str(index), f"00001-{index // 2}.parquet", f"{index}.mp4") for index in range(6, 10)]
    ledger.add_plan(0, _plan(*first), True)
    ledger.add_plan(1, _plan(*second), True)
    for row in (0, 2, 4, 6):
        shard = f"0000{int(row == 6)}-{row // 2}.parquet"
        _commit(ledger, shard, [str(row), str(row + 1)])
    return ledger


def test_footers_of_a_finished_plan_are_read_once(tmp_path: Path) -> None:
    ledger = _run(tmp_path)
    before = list(ledger.summaries())
    assert [name for name, _ in ledger.pending()] == ["00001.parquet"]
    ledger.compact()
    assert ledger.folder.names(SUMMARY_FOLDER, "") == ["00000-3.parquet"]
    (tmp_path / "clips" / "00000-1.parquet").write_bytes(b"no Parquet, and not opened")
    (tmp_path / PLAN_FOLDER / "00000.parquet").write_bytes(b"no Parquet, and not opened")
    assert list(ledger.summaries()) == before
    assert list(ledger.pending()) == [("00001.parquet", {"00001-4.parquet": 2})]


COMPACTED = """
import os, signal, sys
from tests.records.test_ledger import ledger_of

folder, allowed = sys.argv[1], int(sys.argv[2])

def count(event, arguments):
    global allowed
    writes = event in ("os.link", "os.remove", "os.rename") or (event == "open" and "w" in str(arguments[1]))
    if writes and any(folder in str(one) for one in arguments[:2]):
        if not allowed:
            os.kill(os.getpid(), signal.SIGKILL)
        allowed -= 1

ledger = ledger_of(folder)
sys.addaudithook(count)
ledger.compact()
"""
"""Program that compacts a run, and is killed before a change of its files."""


def test_compacting_killed_before_every_change(tmp_path: Path) -> None:
    before = list(_run(tmp_path / "run").summaries())
    for allowed in range(20):
        folder = tmp_path / str(allowed)
        shutil.copytree(tmp_path / "run", folder)
        done = subprocess.run([sys.executable, "-c", COMPACTED, str(folder), str(allowed)], cwd=ROOT)
        assert list(ledger_of(folder).summaries()) == before, allowed
        ledger_of(folder).compact()
        assert ledger_of(folder).folder.names(SUMMARY_FOLDER, ".parquet") == ["00000-3.parquet"]
        assert list(ledger_of(folder).summaries()) == before
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert 2 <= allowed < 20


def test_a_summary_does_not_outlive_a_shard(tmp_path: Path) -> None:
    """A shard that is made again may come out otherwise, since its source may have changed."""
    ledger = _run(tmp_path)
    ledger.compact()
    (tmp_path / "clips" / "00000-1.parquet").unlink()
    assert dict(ledger.pending())["00000.parquet"] == {"00000-1.parquet": 2}
    assert [one.name for one in ledger.summaries()] == ["00000-0.parquet", "00000-2.parquet", "00001-3.parquet"]
    ledger.forget_incomplete()
    assert ledger.folder.names(SUMMARY_FOLDER, "") == []
    _commit(ledger, "00000-1.parquet", ["3", "2"])
    ledger.compact()
    (again,) = [one for one in ledger.summaries() if one.name == "00000-1.parquet"]
    assert [one.sample_id for one in again.rejects] == ["3", "2"]


def test_inspection_compares_counts(tmp_path: Path) -> None:
    ledger = _run(tmp_path)
    _commit(ledger, "00001-4.parquet", ["8"])
    found = inspect(str(tmp_path))
    assert isinstance(found, RunFacts)
    assert (found.num_pending, found.num_differing, found.differing) == (0, 1, "00001-4.parquet")
    assert dict(found.facts)["complete"].startswith("no: 1 shards, such as 00001-4.parquet,")
    (tmp_path / "clips" / "00001-4.parquet").unlink()
    _commit(ledger, "00001-4.parquet", ["8", "9"])
    again = inspect(str(tmp_path))
    assert isinstance(again, RunFacts)
    assert dict(again.facts)["complete"] == "yes"
    assert (again.num_planned, again.num_rejects, again.num_shards) == (10, 10, 5)


def test_an_index_finds_names_and_keeps_their_first_number() -> None:
    index = NameIndex()
    index.add([("a", 1), ("b", None), ("a", 2)])
    index.add([("b", 3), ("c", None)])
    index.add([("a", 4), ("b", None)])
    assert index.find(["x", "a", "b", "c", "a"]) == {1: 1, 2: 3, 3: None, 4: 1}
    assert index.find([]) == {}


def test_repeated_names_are_found_over_batches() -> None:
    assert repeated_hashes([["a", "b"], [], ["c", "a"], ["d", "d"]]) == {hash("a"), hash("d")}
