"""Commands whose disk is full: one line that says so, and nothing half written."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import animate, export_checkpoint, generate, import_checkpoint, inspect, reconstruct, synth
from tests.conftest import Job, moving_texture
from tests.disks import disk, resize
from tests.models.published_folder import make_published
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder

TINY = ("--model", "tiny", "--video-steps", "1")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Folder on a disk of its own without room."""
    with disk(tmp_path / "full", "size=64k") as folder:
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        yield folder


@pytest.fixture
def filling(full: Path) -> Path:
    """Folder on a disk of its own that says that it has room, and is full after 16 KiB."""
    with (full / "filler").open("r+b") as filler:
        filler.truncate(os.path.getsize(full / "filler") - (16 << 10))
    return full


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_mp4(moving_texture(24, 48, 64, 0), tmp_path / "video.mp4", 6)
    return tmp_path / "video.mp4"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (synth, lambda video, full: ["--output", full / "corpus", "--videos", "1"]),
        (inspect, lambda video, full: [video, "--png", full / "sheet.png"]),
        (inspect, lambda video, full: [video, "--html", full / "page.html"]),
        (generate, lambda video, full: ["image", "--prompt", "x", "--output", full / "a.png", *TINY]),
        (generate, lambda video, full: ["video", "--prompt", "x", "--output", full / "a.mp4", *TINY]),
        (reconstruct, lambda video, full: [video, "--output", full / "a.mp4", "--keyframe-steps", "1", *TINY]),
        (animate, lambda video, full: [video, video, "--output", full / "a.mp4", *TINY]),
    ],
    ids=["synth", "inspect --png", "inspect --html", "generate image", "generate video", "reconstruct", "animate"],
)
def test_commands_in_this_process(
    full: Path, video: Path, capsys: pytest.CaptureFixture[str], job: Any, words: Callable[..., list[Any]]
) -> None:
    before = {path for path in full.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        job.main([*map(str, words(video, full))])
    assert end.value.code in (1, 2)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "untrained" not in line]
    assert "No space left" in lines[-1]
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in captured.err + captured.out
    assert {path for path in full.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("job", [import_checkpoint, export_checkpoint])
def test_a_disk_that_is_too_small_for_a_model_is_noticed_before(
    full: Path, capsys: pytest.CaptureFixture[str], checkpoints: dict[Any, Path], job: Any
) -> None:
    _refused(job, checkpoints[job], full, capsys, "GB free")


@pytest.mark.parametrize("job", [import_checkpoint, export_checkpoint])
def test_a_disk_that_fills_up_while_a_model_is_written(
    filling: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: dict[Any, Path],
    job: Any,
) -> None:
    roomy = shutil.disk_usage("/")._replace(free=1 << 40)  # free space before another process took it
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: roomy)
    _refused(job, checkpoints[job], filling, capsys, "No space left")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Folders that the commands read."""
    folder = tmp_path_factory.mktemp("checkpoints")
    ModelFolder("tiny").save(folder / "model")
    return {import_checkpoint: make_published(folder / "published"), export_checkpoint: folder / "model"}


def _refused(job: Any, source: Path, disk: Path, capsys: pytest.CaptureFixture[str], why: str) -> None:
    words = ["--from", str(source), "--to", str(disk / "out")]
    with pytest.raises(SystemExit) as end:
        job.main([*words, "--preset", "tiny"] if job is import_checkpoint else words)
    assert end.value.code == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert why in line
    assert captured.err.splitlines()[-1] == line
    assert [path.name for path in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("name", ["decompose", "tokenize", "train"])
def test_commands_with_workers(full: Path, video: Path, on_head: Job, tmp_path: Path, name: str) -> None:
    if name == "decompose":
        words = ["decompose", "--input", video, "--output", full / "run"]
    elif name == "tokenize":
        words = ["tokenize", "--input", video, "--model", "tiny", "--output", full / "run"]
    else:
        Image.new("RGB", (64, 48), "red").save(tmp_path / "picture.png")
        words = ["train", "vae", "--model", "tiny", "--input", tmp_path / "picture.png", "--output", full / "run"]
        words += ["--steps", "2", "--batch", "1", "--micro-batch", "1"]
    done = on_head(*words)
    assert done.returncode in (1, 2)
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in full.rglob("*.parquet") if os.path.getsize(path)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["decompose", "tokenize"])
def test_every_write_of_a_data_run_fails_once(video: Path, on_head: Job, tmp_path: Path, name: str) -> None:
    """A disk that grows by a page whenever it was full. The start that has room for all finds what others have left."""
    words = [name, "--input", video, *(["--model", "tiny"] if name == "tokenize" else [])]
    assert on_head(*words, "--output", tmp_path / "whole").returncode == 0
    failures = 0
    with disk(tmp_path / "small", "size=4k") as small:
        for pages in itertools.count(1):
            resize(small, f"{4 * pages}k")
            done = on_head(*words, "--output", small / "run")
            assert "Traceback" not in done.stderr
            if done.returncode == 0:
                break
            failures += 1
            assert done.returncode in (1, 2)
            assert "No space left" in done.stderr
        assert failures > 5
        for file in (tmp_path / "whole").rglob("*.parquet"):
            if file.parent.name == "summaries":  # they tell how long the work took
                continue
            found = pq.read_table(small / "run" / file.relative_to(tmp_path / "whole"))
            assert found.equals(pq.read_table(file))
        assert not list((small / "run").rglob(".*"))
