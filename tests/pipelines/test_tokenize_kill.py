"""SIGKILL while tokenizing, then the same command again: every sample exactly once, with the same codes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.conftest import ROOT, Job, command, s3_filesystem, wait_for
from tests.pipelines.test_kill import below_head
from tests.tokens import picture, write_model

NUM_IMAGES = 800
"""Eight shards: an image counts for a hundredth of a core-second, and a shard holds one."""

SIX_CORES = "import ray, sys; ray.init('local', num_cpus=6, include_dashboard=False); from jobs import cli; cli.main()"
"""The `videolavit` command on a Ray that counts more cores than there are."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many images, a few of them bad, and a model."""
    folder = tmp_path_factory.mktemp("images")
    write_model(folder / "model")
    (folder / "in").mkdir()
    different = [folder / "in" / f"{index:04d}.jpg" for index in range(10)]
    for index, file in enumerate(different):
        file.write_bytes(picture(index, (512, 512)))
    for index in range(len(different), NUM_IMAGES):
        os.link(different[index % 10], folder / "in" / f"{index:04d}.jpg")
    (folder / "in" / "bad.jpg").write_text("no image")
    (folder / "in" / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Made by three encoders and three workers; the other runs here have one of each."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    words = [*map(str, arguments(corpus, str(output))), "--workers", "3", "--encoders", "3"]
    done = subprocess.run([sys.executable, "-c", SIX_CORES, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = runs.samples(str(output), "tokens")
    assert len(samples) == NUM_IMAGES
    return samples


def arguments(corpus: Path, output: str) -> tuple[object, ...]:
    return ("tokenize", "--input", corpus / "in", "--output", output, "--model", corpus / "model")


class Started:
    """A job in its own process."""

    def __init__(self, corpus: Path, output: str, environment: dict[str, str]) -> None:
        self.output = output
        words = command(*arguments(corpus, output))
        self.process = subprocess.Popen(words, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: self.process.poll() is not None or condition(), what)
        assert self.process.poll() is None, "the job ended before it could be disturbed"

    def commits(self) -> int:
        return len(runs.shards(self.output, "tokens"))

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def started(corpus: Path, ray_head: str, tmp_path: Path) -> Iterator[Started]:
    job = Started(corpus, str(tmp_path / "out"), {"RAY_ADDRESS": ray_head})
    yield job
    if job.process.poll() is None:
        job.kill()


def _check(output: str, undisturbed: dict[str, str]) -> None:
    assert runs.samples(output, "tokens") == undisturbed
    assert sorted(row["error_type"] for row in runs.rejects(output)) == ["NotAnImage", "SourceEmpty"]
    counts = runs.run(output)["counts"]
    assert counts["planned"] == counts["samples"] + counts["rejects"] == NUM_IMAGES + 2


def test_driver_killed_between_commits(
    started: Started, on_head: Job, corpus: Path, undisturbed: dict[str, str]
) -> None:
    started.wait_until(lambda: started.commits() >= 2, "no commits")
    started.kill()
    kept = {name: Path(name).stat().st_mtime_ns for name in runs.shards(started.output, "tokens")}
    assert runs.samples(started.output, "tokens").items() < undisturbed.items()
    done = on_head(*arguments(corpus, started.output))
    assert done.returncode == 0, done.stderr
    _check(started.output, undisturbed)
    assert kept == {name: Path(name).stat().st_mtime_ns for name in kept}, "committed work was computed again"


def test_an_encoder_a_decoder_and_its_child_killed(started: Started, undisturbed: dict[str, str]) -> None:
    """The run goes on without a new start, and ends complete."""
    started.wait_until(lambda: started.commits() >= 1, "no commits")
    for word in ("prepare_sample", "Encoder", "Preparer"):
        started.wait_until(lambda: bool(below_head(word)), f"no {word}")  # noqa: B023
        below_head(word)[0].kill()
    assert started.process.wait(120) == 0
    _check(started.output, undisturbed)


def test_on_s3(corpus: Path, run_job: Job, s3: dict[str, str], undisturbed: dict[str, str]) -> None:
    """Input and output on S3, on a Ray of its own; the codes are those of the local files."""
    fs = s3_filesystem(s3)
    for name in ("0000.jpg", "0001.jpg", "bad.jpg"):
        fs.put_file(str(corpus / "in" / name), f"bucket/images/{name}")
    fs.pipe_file("bucket/images/0000.txt", b"on S3")
    url, model = "s3://bucket/tokens", corpus / "model"
    done = run_job(
        "tokenize", "--input", "s3://bucket/images", "--output", url, "--model", model, RAY_ADDRESS="local", **s3
    )
    assert done.returncode == 0, done.stderr
    storage = {
        "key": s3["AWS_ACCESS_KEY_ID"],
        "secret": s3["AWS_SECRET_ACCESS_KEY"],
        "endpoint_url": s3["AWS_ENDPOINT_URL"],
    }
    assert sorted(row["text"] or "" for row in runs.rows(url, "tokens", **storage)) == ["", "on S3"]
    assert [row["error_type"] for row in runs.rejects(url, **storage)] == ["NotAnImage"]
    assert b"secret" not in fs.cat_file("bucket/tokens/run.json")
