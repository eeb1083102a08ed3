"""`videolavit train` as real processes: killed anywhere, on several workers, and used wrongly."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from tests.commands import printed_by
from tests.conftest import ROOT, Job, command, moving_texture
from tests.disks import disk
from tests.training.test_sources import write_run as write_run_of_clips
from tests.training.token_runs import random_rows, write_run
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder

STEPS = 20
LIMIT = 240.0


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelFolder("tiny")
    return write_run(tmp_path_factory.mktemp("run") / "tokens", model, random_rows(model, 40), shards=2)


def arguments(tokens: Path, output: Path, *more: Any) -> list[Any]:
    options = {"steps": STEPS, "batch": 4, "micro-batch": 2, "log-every": 1, "save-every": 4}
    named = [word for name, value in options.items() for word in (f"--{name}", value)]
    length = ["--objective.sequence_length", 256]
    return ["train", "language-model", "--model", "tiny", "--input", tokens, "--output", output, *named, *length, *more]


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory, run_job: Job) -> Path:
    """A run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = run_job(*arguments(tokens, output))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output / "model")
    return output


def losses(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [tuple(one[key] for key in ("step", "loss", "text", "visual", "motion", "grad_norm")) for one in lines]


def killed_when(ready: Callable[[], bool], *words: Any) -> None:
    """Starts a job and ends it with SIGKILL as soon as something is the case."""
    job = subprocess.Popen(command(*words), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    try:
        while not ready():
            assert job.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        job.kill()
        job.wait()


def in_step_10(output: Path) -> bool:
    metrics = output / "metrics.jsonl"
    return metrics.exists() and '"step": 9,' in metrics.read_text()


def in_a_save(output: Path) -> bool:
    folder = output / "checkpoints" / "step-00000012"
    return folder.exists() and not (folder / "manifest.json").exists()


@pytest.mark.parametrize("moment", [in_step_10, in_a_save])
def test_a_killed_training_goes_on_bit_for_bit(
    moment: Callable[[Path], bool], tokens: Path, whole: Path, tmp_path: Path, run_job: Job
) -> None:
    output = tmp_path / "run"
    killed_when(lambda: moment(output), *arguments(tokens, output))
    assert not (output / "model").exists()
    done = run_job(*arguments(tokens, output))
    assert done.returncode == 0, done.stderr
    assert "continues from step-" in done.stderr
    assert losses(output) == losses(whole)
    ours, theirs = (load_file(run / "model" / "language_model" / "model.safetensors") for run in (output, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_two_workers_of_ray_train_recover_from_a_lost_one(
    tokens: Path, whole: Path, tmp_path: Path, ray_head: str
) -> None:
    output = tmp_path / "run"
    words = arguments(tokens, output, "--workers", 2, "--cpus-per-worker", 0.5)
    environment = os.environ | {"RAY_ADDRESS": ray_head}
    job = subprocess.Popen(
        command(*words), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + LIMIT
    while not in_step_10(output):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = [one for one in _below(int(os.environ["TESTS_RAY_HEAD"])) if "RayTrainWorker" in " ".join(one.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    out, error = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, error
    assert out == f"{output / 'model'}\n"
    assert "A worker died" in error
    assert "continues from step-" in error
    assert [one[0] for one in losses(output)] == list(range(1, STEPS + 1))
    for ours, theirs in zip(losses(output), losses(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    newest = output / "checkpoints" / f"step-{STEPS:08d}" / "manifest.json"
    assert json.loads(newest.read_text())["world"] == 2


def test_samples_come_through_ray_data_also_after_a_loader_was_killed(
    tmp_path: Path, ray_head: str, run_job: Job
) -> None:
    write_mp4(moving_texture(240, 96, 128, 0), tmp_path / "video.mp4", 12)
    clips = write_run_of_clips(tmp_path / "clips", [{"source": str(tmp_path / "video.mp4")}])
    objective = {"part": "video_detokenizer/vae", "start": "keyframe", "frames": 2, "height": 16, "width": 16}
    named = [word for name, value in objective.items() for word in (f"--objective.{name}", value)]
    count = ["--steps", 40, "--batch", 8, "--micro-batch", 2, "--log-every", 1]
    words = ["train", "vae", "--model", "tiny", "--input", clips, *named, *count]
    alone = run_job(*words, "--output", tmp_path / "here", OMP_NUM_THREADS="1")  # a worker has the same
    assert alone.returncode == 0, alone.stderr
    output, killed, seen = tmp_path / "ray", 0, set()
    job = subprocess.Popen(
        command(*words, "--output", output, "--workers", 1, "--cpus-per-worker", 0.5, "--loaders", 1),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": ray_head},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while job.poll() is None:
        for loader in _below(int(os.environ["TESTS_RAY_HEAD"])):
            with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
                if "_LoadActor" in " ".join(loader.cmdline()):
                    seen.add(loader.pid)
                    if not killed and (output / "metrics.jsonl").exists():
                        loader.kill()
                        killed = loader.pid
        time.sleep(0.05)
    _, error = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, error
    assert len(seen) == 2, "the loader was not killed at work"
    ours, theirs = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open() if '"loss"' in line]
        for folder in (output, tmp_path / "here")
    )
    assert ours == theirs
    assert "continues from" not in error


def _below(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            process.cmdline()
            found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_workers_finding_is_a_users_error(tokens: Path, tmp_path: Path, on_head: Job) -> None:
    unknown = ["--trainable", "nothing.*"]
    done = on_head(*arguments(tokens, tmp_path / "run", "--workers", 2, "--cpus-per-worker", 0.5, *unknown))
    assert done.returncode == 2, done.stderr
    assert "no parameter matches 'nothing.*'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on_bit_for_bit(
    number: signal.Signals, tokens: Path, whole: Path, tmp_path: Path, run_job: Job
) -> None:
    output = tmp_path / "run"
    words = arguments(tokens, output, "--save-every", 1000)
    job = subprocess.Popen(command(*words), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT
    while not in_step_10(output):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    job.send_signal(number)
    _, error = job.communicate(timeout=LIMIT)
    assert job.returncode == 128 + number, error
    assert "the same command continues" in error
    assert "Traceback" not in error
    assert len(list((output / "checkpoints").glob("*/manifest.json"))) == 1
    done = run_job(*words)
    assert done.returncode == 0, done.stderr
    assert losses(output) == losses(whole)


def test_workers_have_relative_paths_and_stop_on_a_signal(tokens: Path, tmp_path: Path, ray_head: str) -> None:
    """Their working folder is another one. The driver's signal reaches them."""
    output = tmp_path / "run"
    words = arguments(Path(os.path.relpath(tokens, ROOT)), Path(os.path.relpath(output, ROOT)), "--steps", 100_000)
    job = subprocess.Popen(
        command(*words, "--workers", 1, "--cpus-per-worker", 0.5, "--max-failures", 0),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": ray_head},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT
    while not in_step_10(output):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, error = job.communicate(timeout=LIMIT)
    assert job.returncode == 143, error
    (newest,) = re.findall(r"stopped after step (\d+), which is saved", error)
    assert (output / "checkpoints" / f"step-{int(newest):08d}" / "manifest.json").is_file()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Folder on a disk of its own that cannot be written to."""
    with disk(tmp_path / "read-only", "ro") as folder:
        yield folder


def test_outputs_that_cannot_be_are_named(
    tokens: Path, tmp_path: Path, read_only: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is trained, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for output, expected in (
        ("file", "file: it is a file; choose another output"),
        ("https://127.0.0.1:1/run", "https://127.0.0.1:1/run"),
        ("nosuch://run", "cannot use nosuch://run"),
        (read_only / "run", "Read-only file system"),
        (read_only, "Read-only file system"),
    ):
        words = [str(word) for word in arguments(tokens, output)]
        assert expected in printed_by(capsys, *words, status=2), output
    assert {path.name for path in tmp_path.iterdir()} == {"file", "read-only"}


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--optimizer.clip", -1, "optimizer.clip"),
        ("--optimizer.lr", "-1e-3", "optimizer.lr: Input should be greater than 0"),
        ("--optimizer.betas", "[0.9,1.5]", "betas must be at least 0 and below 1"),
        ("--parallel.shard", 3, "parallel.shard is 3"),
        ("--timeout", 0, "timeout"),
        ("--batch", "nan", "batch"),
        ("--workers", 3, "a batch of 4 cannot be divided among 3 workers; choose a multiple of 3"),
    ],
)
def test_numbers_out_of_bounds_are_named(
    option: str, value: Any, expected: str, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(word) for word in arguments(tokens, tmp_path / "run", option, value)]
    assert expected in printed_by(capsys, *words, status=2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "engine"], "no component 'engine'"),
        (["train", "motion-tokenizer", "--model", "tiny"], "--input is missing"),
        (["train", "motion-tokenizer", "--objective.commitmint", "1"], "commitmint"),
        (["train", "language-model", "--model", "tiny", "--input", "nowhere", "--output", "out"], "nowhere"),
        (["train", "vae", "--config", "medium"], "medium"),
    ],
)
def test_mistakes_are_named(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in printed_by(capsys, *words, status=2)


def test_another_models_run_is_refused(whole: Path, tokens: Path, run_job: Job) -> None:
    done = run_job(*arguments(tokens, whole, "--seed", 1))
    assert done.returncode == 2
    assert "holds another training" in done.stderr
    assert "seed: 0 -> 1" in done.stderr
    assert "(accept_changes: seed)" in done.stderr


def test_a_change_that_is_accepted_continues(whole: Path, tokens: Path, tmp_path: Path, run_job: Job) -> None:
    """Other noise in the same folder, and options that decide nothing without a word."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    more = ["--steps", STEPS + 2, "--objective.show_captions", 8, "--objective.noise", 0.1]
    done = run_job(*arguments(tokens, output, *more, "--accept-changes", "objective.noise"))
    assert done.returncode == 0, done.stderr
    assert "accepted: objective.noise: 0.0 -> 0.1" in done.stderr
    assert f"continues from step-{STEPS:08d}" in done.stderr
