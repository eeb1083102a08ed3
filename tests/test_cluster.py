"""Jobs as a data team submits them, on a real head."""

import json
import os
import subprocess
import sys
from pathlib import Path

import requests
import yaml

from tests import runs
from tests.conftest import ROOT, moving_texture, wait_for
from tests.training.test_sources import write_run
from videolavit.media import write_mp4


def test_jobs_ship_packages_of_this_project_alone() -> None:
    """Without a working directory, in which keys and corpora may lie."""
    shipped = yaml.safe_load((ROOT / "runtime-env.yaml").read_text())
    assert set(shipped) == {"py_modules"}
    for module in shipped["py_modules"]:
        assert (ROOT / module / "__init__.py").is_file()


def submit(*words: object) -> list[str]:
    """The command that submits a job with a runtime environment from the working directory."""
    ray = str(Path(sys.executable).with_name("ray"))
    return [ray, "job", "submit", "--runtime-env", "runtime-env.yaml", *map(str, words)]


def test_submitted_job(ray_head: str, small_corpus: Path, tmp_path: Path) -> None:
    """On a real head node."""
    output = tmp_path / "out"
    words = ["python", "-m", "jobs.decompose", "--input", small_corpus, "--output", output]
    done = subprocess.run(submit("--", *words), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert len(runs.samples(str(output))) == 6
    assert runs.run(str(output))["complete"]


def test_submitted_training_takes_the_workers_there_are_and_shows_its_metrics(ray_head: str, tmp_path: Path) -> None:
    """Two of three workers fit the head; Prometheus would read their loss from its metrics endpoint."""
    write_mp4(moving_texture(60, 64, 96, 0), tmp_path / "video.mp4", 6)
    clips = write_run(tmp_path / "clips", [{"source": str(tmp_path / "video.mp4")}])
    output = tmp_path / "run"
    options = {"model": "tiny", "input": clips, "output": output, "steps": 100000, "batch": 6, "micro-batch": 1}
    options |= {"log-every": 1, "save-every": 1, "workers": 3, "min-workers": 1}
    named = [word for name, value in options.items() for word in (f"--{name}", value)]
    words = ["python", "-m", "jobs.train", "motion-tokenizer", *named]
    job = subprocess.Popen(
        submit("--submission-id", "training", "--", *words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: job.poll() is not None or _loss_line() is not None, "no metrics of the training", limit=200)
        line = _loss_line()
        assert line is not None, job.communicate()[0].decode()
        assert 'component="motion-tokenizer"' in line
        assert float(line.split()[-1]) > 0
        wait_for(lambda: any((output / "checkpoints").glob("*/manifest.json")), "no checkpoint", limit=60)
        manifests = sorted((output / "checkpoints").glob("*/manifest.json"))
        assert json.loads(manifests[-1].read_text())["world"] == 2
    finally:
        subprocess.run([submit()[0], "job", "stop", "training"], cwd=ROOT, capture_output=True, timeout=60)
        job.communicate(timeout=60)


def _loss_line() -> str | None:
    """The line of the loss that Prometheus would read, if there is one yet."""
    try:
        lines = requests.get(os.environ["TESTS_RAY_METRICS"], timeout=10).text.splitlines()
    except requests.ConnectionError:
        return None
    return next((line for line in lines if line.startswith("ray_videolavit_train_loss{")), None)
