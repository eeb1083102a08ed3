"""Workers that hang: the run names them and gives their shards away, and signals end it in time all the same."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests import runs
from tests.conftest import ROOT, command, moving_texture, wait_for
from videolavit.media import write_mp4


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_mp4(moving_texture(24 * 20, 288, 352, 1), folder / "video0.mp4", 24)
    for index in range(1, 8):
        os.link(folder / "video0.mp4", folder / f"video{index}.mp4")
    return folder


def actors() -> list[psutil.Process]:
    """Workers of the tests' Ray head that make shards."""
    found = []
    for process in psutil.Process(int(os.environ["TESTS_RAY_HEAD"])).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ShardMaker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that do nothing any more, and are ended after the body."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def start(corpus: Path, output: Path, ray_head: str) -> "subprocess.Popen[str]":
    words = command("decompose", "--input", corpus, "--output", output)
    environment = os.environ | {"RAY_ADDRESS": ray_head}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def exported() -> set[str]:
    """Names of the metrics of data runs that Prometheus would read."""
    text = requests.get(os.environ["TESTS_RAY_METRICS"], timeout=10).text
    return set(re.findall(r"^(ray_videolavit_data_\w+)\{", text, re.MULTILINE))


def test_signals_end_a_run_whose_workers_hang(ray_head: str, corpus: Path, tmp_path: Path) -> None:
    job = start(corpus, tmp_path / "out", ray_head)
    wait_for(lambda: job.poll() is not None or len(runs.shards(str(tmp_path / "out"))) >= 1, "no shard")
    with stopped(actors()):
        began = time.monotonic()
        job.send_signal(signal.SIGINT)
        job.communicate(timeout=60)
        assert time.monotonic() - began < 20  # ten, and what a busy machine adds
    assert job.returncode == 130


def test_shards_of_workers_that_hang_are_made_by_others(ray_head: str, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = start(corpus, output, ray_head)
    wait_for(lambda: job.poll() is not None or len(runs.shards(str(output))) >= 1, "no shard")
    with stopped(actors()):
        wait_for(lambda: "ray_videolavit_data_samples_total" in exported(), "no metrics", limit=60)
        _, shown = job.communicate(timeout=240)
    assert job.returncode == 0, shown
    assert "other workers make what is left" in shown
    assert len(runs.samples(str(output))) == 8
