"""The examples run, each as its own process in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIMIT = 280.0


def run_example(name: str, folder: Path, **environment: str) -> str:
    """Runs an example; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == {
        "data_team",
        "trainer",
        "training_minute",
        "service",
        "model_user",
    }


def test_data_team(tmp_path: Path, ray_head: str) -> None:
    printed = run_example("data_team", tmp_path, RAY_ADDRESS=ray_head)
    assert "clips: 4 of 4 videos" in printed
    assert "motion codes" in printed


def test_trainer(tmp_path: Path, ray_head: str) -> None:
    printed = run_example("trainer", tmp_path, RAY_ADDRESS=ray_head)
    assert "trained 20 steps" in printed
    assert "trained parts: ['motion_tokenizer']" in printed


def test_a_minute_of_training(tmp_path: Path, ray_head: str) -> None:
    printed = run_example("training_minute", tmp_path, RAY_ADDRESS=ray_head)
    assert "trained: ['motion_tokenizer', 'keyframe_detokenizer/vae']" in printed
    assert "written: back-side-by-side.mp4" in printed


@pytest.mark.slow
def test_model_user(tmp_path: Path) -> None:
    printed = run_example("model_user", tmp_path)
    assert "frames: (47, 48, 72, 3)" in printed
    assert all((tmp_path / name).stat().st_size for name in ("video.mp4", "onward.mp4", "back.mp4"))


@pytest.mark.cluster
def test_service(tmp_path: Path) -> None:
    printed = run_example("service", tmp_path, RAY_ADDRESS="local")
    assert "video: completed" in printed
    assert (tmp_path / "picture.png").stat().st_size
