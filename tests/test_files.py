"""Files that appear whole, and what killed processes leave behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from videolavit import files, scratch
from videolavit.models.folder import ModelFolder

HOLD = """
import sys, time
from videolavit.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "data").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""

SHARE = """
import sys, time
from videolavit.scratch import shared_folder
name, log, seconds = sys.argv[1:]
def fill(folder):
    (folder / name).write_text("begun")
    print("fills", flush=True)
    time.sleep(float(seconds))
    (folder / "content").write_text("whole")
    with open(log, "a") as lines:
        lines.write(name)
with shared_folder("key", fill) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    holders = [subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        dead, alive = (Path(holder.stdout.readline().strip()) for holder in holders)  # type: ignore[union-attr]
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        (tmp_path / "videolavit-new").mkdir()
        (tmp_path / "somebody-else").mkdir()
        for folder in (dead, alive, tmp_path / "somebody-else"):
            os.utime(folder, (time.time() - 3600,) * 2)
        scratch.sweep_once(str(tmp_path))
        assert {one.name for one in tmp_path.iterdir()} == {alive.name, "videolavit-new", "somebody-else"}
        assert (alive / "data").read_text() == "x"
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _sharing(name: str, log: Path, seconds: float) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", SHARE, name, str(log), str(seconds)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_shared_folder_is_filled_once_and_removed_by_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process is killed while it fills it, the others go on at once."""
    place, log = tmp_path / "tmp", tmp_path / "log"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    first = _sharing("first", log, 600)
    assert first.stdout is not None
    assert first.stdout.readline() == "fills\n"
    others = [_sharing(name, log, 0.5) for name in ("second", "third")]
    try:
        first.kill()
        first.wait()
        said: list[str] = []
        for other in others:
            line = ""
            while line in ("", "fills\n"):
                line = other.stdout.readline()  # type: ignore[union-attr]
            said.append(line.strip())
        folder = Path(said[0])
        assert said[1] == said[0]
        filler = log.read_text()
        assert filler in ("second", "third"), "one of them, once"
        assert {one.name: one.read_text() for one in folder.iterdir()} == {filler: "begun", "content": "whole"}
        others[0].communicate("")
        assert (folder / "content").exists(), "it is used"
        others[1].communicate("")
        assert [one.returncode for one in others] == [0, 0]
        assert list(place.iterdir()) == []
    finally:
        for process in (first, *others):
            process.kill()
            process.wait()


def test_a_folder_of_another_kind_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that somebody has put at its place."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    filled: list[Path] = []
    with scratch.shared_folder("key", filled.append) as folder:
        shared = folder.parent
    (tmp_path / "elsewhere").mkdir()
    shared.symlink_to(tmp_path / "elsewhere")
    with scratch.shared_folder("key", filled.append) as own:
        assert own.parent == tmp_path
        assert own != shared
    assert filled == [folder, own]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_was_left_beside_a_target_goes_with_the_next_one(tmp_path: Path) -> None:
    names = [f".shard.parquet.{'a' * 32}", f".model.{'b' * 32}", f".video.mp4.{'c' * 32}.mp4", ".hidden.notes", "kept"]
    for name in names:
        (tmp_path / name).mkdir() if "model" in name else (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - 2 * files.ABANDONED_SECONDS,) * 2)
    (tmp_path / f".young.{'d' * 32}").write_text("x")
    with files.write_beside(tmp_path / "new") as (unfinished,):
        unfinished.write_text("y")
    assert {one.name for one in tmp_path.iterdir()} == {"new", "kept", ".hidden.notes", f".young.{'d' * 32}"}


def test_a_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is synced before `model.json` is written, and that before the folder is renamed."""
    synced: list[Path] = []

    def fsync(descriptor: int, real: object = os.fsync) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)  # type: ignore[operator]

    monkeypatch.setattr(os, "fsync", fsync)
    with files.write_beside(tmp_path / "model") as (unfinished,):
        ModelFolder("tiny").save(unfinished)
    listed = next(place for place, path in enumerate(synced) if path.name.startswith(".model.json."))
    made = [path for path in (tmp_path / "model").rglob("*") if path.name != "model.json"]
    assert len(made) > 30
    assert {unfinished / path.relative_to(tmp_path / "model") for path in made} <= set(synced[:listed])
    assert synced.index(unfinished, listed) < synced.index(tmp_path, listed)
