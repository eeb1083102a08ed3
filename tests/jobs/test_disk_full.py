"""Commands whose disk is full: one line that says so, and nothing half written."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import animate, generate, inspect, reconstruct, synth
from tests.conftest import Job, moving_texture
from videolavit.media import write_mp4

TINY = ("--model", "tiny", "--video-steps", "1")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Folder on a disk of its own without room."""
    folder = tmp_path / "full"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("only root can make a disk")
    try:
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


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


@pytest.mark.parametrize("name", ["decompose", "train"])
def test_commands_with_workers(full: Path, video: Path, on_head: Job, tmp_path: Path, name: str) -> None:
    if name == "decompose":
        words = ["decompose", "--input", video, "--output", full / "run"]
    else:
        Image.new("RGB", (64, 48), "red").save(tmp_path / "picture.png")
        words = ["train", "vae", "--model", "tiny", "--input", tmp_path / "picture.png", "--output", full / "run"]
        words += ["--steps", "2", "--batch", "1", "--micro-batch", "1"]
    done = on_head(*words)
    assert done.returncode in (1, 2)
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in full.rglob("*.parquet") if os.path.getsize(path)]
