"""Stages of the proof: functions in processes of their own, each done once."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pipelines.stages import Stage, StageFailed, Stages
from tests.conftest import ROOT, wait_for
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.synth import SynthSettings, render_corpus
from videolavit.training.settings import OptimizerSettings

SHORT = SynthSettings(width=96, height=96, seconds=0.5, fps=6)


def write(file: Path, on_progress: OnProgress) -> None:
    """Appends the time of its start and end to a file."""
    started = time.time()
    time.sleep(0.7)
    with file.open("a") as lines:
        lines.write(f"{started} {time.time()}\n")
    on_progress(Progress("write", 1, 1, "a line"))


def wait(file: Path, on_progress: OnProgress) -> None:
    """Writes its process id to a file, and never ends."""
    file.write_text(str(os.getpid()))
    on_progress(Progress("wait", message="for ever"))
    time.sleep(3600)


def spans(file: Path) -> list[list[float]]:
    return [list(map(float, line.split())) for line in file.read_text().splitlines()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_a_stage_runs_once_and_says_what_it_does(tmp_path: Path) -> None:
    corpus = Stage("corpus", partial(render_corpus, str(tmp_path / "corpus"), 2, SHORT))
    reports: list[Progress] = []
    Stages(tmp_path).run([corpus], reports.append)
    assert [(one.stage, one.done, one.total) for one in reports[1:-1]] == [("corpus", 1, 2), ("corpus", 2, 2)]
    manifest = tmp_path / "corpus" / "manifest.jsonl"
    manifest.unlink()
    again = Stages(tmp_path)
    again.run([corpus], reports.append)
    assert reports[-1] == Progress("corpus", message="done before")
    assert not manifest.exists()
    assert set(again.minutes) == {"corpus"}
    assert 0 < again.minutes["corpus"] < 1


def test_two_stages_run_side_by_side_and_others_when_theirs_are_done(tmp_path: Path) -> None:
    after = {"a": [], "b": ["a"], "c": [], "d": []}
    stages = [Stage(name, partial(write, tmp_path / name), before) for name, before in after.items()]
    Stages(tmp_path).run(stages)
    (a,), (b,), (c,), (d,) = (spans(tmp_path / name) for name in after)
    assert max(a[0], c[0]) < min(a[1], c[1])  # b waits for a, so c goes first
    assert b[0] > a[1]
    assert d[0] > min(a[1], c[1])  # never three
    assert "write: a line" in (tmp_path / "logs" / "a.log").read_text()


def test_stages_side_by_side_count_once(tmp_path: Path) -> None:
    times = {"a": [(0, 120), (120, 600)], "b": [(300, 900)], "c": [(360, 420)], "later": [(1200, 1260)]}
    (tmp_path / "stages.json").write_text(json.dumps({"done": [], "times": times}))
    stages = Stages(tmp_path)
    assert stages.minutes == {"a": 10, "b": 10, "c": 1, "later": 1}
    assert stages.total_minutes == 16
    stages.run([Stage("a", partial(write, tmp_path / "a"))])  # once more, in a proof that goes on
    assert 16 < stages.total_minutes < 17


def test_a_failed_stage_says_why_stops_the_others_and_runs_again(tmp_path: Path) -> None:
    other = Stage("other", partial(wait, tmp_path / "pid"))
    failing = Stage("corpus", partial(render_corpus, str(tmp_path / "corpus"), 0, SHORT))
    reason = r"corpus failed: .*number of videos must be at least 1.* \(log: .*corpus.log\)"
    with pytest.raises(StageFailed, match=reason):
        Stages(tmp_path).run([Stage("first", partial(write, tmp_path / "first")), other, failing])
    assert not is_alive(int((tmp_path / "pid").read_text()))
    again = Stages(tmp_path)
    assert again.done == ["first"]
    assert set(again.minutes) == {"first", "other", "corpus"}  # a failed try counts too
    again.run([Stage("corpus", partial(render_corpus, str(tmp_path / "corpus"), 1, SHORT))])
    assert (tmp_path / "corpus" / "manifest.jsonl").exists()


def refuse(on_progress: OnProgress) -> None:
    OptimizerSettings(lr=-1.0, clip=-2.0)


def test_the_reason_of_a_failure_is_the_whole_exception_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as failed:
        Stages(tmp_path).run([Stage("refuse", refuse)])
    message = str(failed.value)
    assert "ValidationError: 2 validation errors" in message
    assert "greater than 0" in message
    assert "greater than or equal to 0" in message
    assert "errors.pydantic.dev" not in message
    assert "\n" not in message


def test_a_callback_that_raises_stops_the_stages(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.message == "for ever":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Stages(tmp_path).run([Stage("wait", partial(wait, tmp_path / "pid"))], stop)
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert Stages(tmp_path).minutes["wait"] > 0


def test_stages_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = f"""
from functools import partial
from pathlib import Path
from pipelines.stages import Stage, Stages
from tests.pipelines.test_stages import wait
Stages(Path({str(tmp_path)!r})).run([Stage("wait", partial(wait, Path({str(tmp_path / "pid")!r})))])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", "the stage")
    finally:
        parent.kill()
        parent.wait()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(pid), "the end of the stage")


def test_a_stage_without_its_beginning_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no stage comes before late"):
        Stages(tmp_path).run([Stage("late", partial(write, tmp_path / "late"), ["early"])], ignore_progress)
