"""Entry commands of the manifests, one after the other on a local head, with a small corpus and a small model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import runs
from tests.conftest import ROOT
from tests.deploy import manifests


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubernetes")


def run_entry(job: str, ray_head: str, work: Path, **values: Any) -> None:
    """Runs the command of a manifest, with other values in its file."""
    given = yaml.safe_load(manifests.values()[f"{job}.yaml"])
    assert values.keys() >= {name for name in given if "://" in str(given[name]) or "/shared" in str(given[name])}
    (work / f"{job}.yaml").write_text(yaml.safe_dump(given | values))
    words = [word.replace(manifests.VALUES, f"{work}/") for word in manifests.entry(job)]
    words = [word.replace("video-lavit-7b", "tiny") for word in words]
    words[0] = sys.executable
    environment = os.environ | manifests.environment() | {"RAY_ADDRESS": ray_head}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_decompose(ray_head: str, small_corpus: Path, work: Path) -> None:
    run_entry("decompose", ray_head, work, input=[str(small_corpus)], output=f"{work}/clips", workers=2)
    assert len(runs.samples(f"{work}/clips")) == 6


def test_tokenize(ray_head: str, work: Path) -> None:
    places = {"input": [f"{work}/clips"], "output": f"{work}/tokens", "model": "tiny"}
    run_entry("tokenize", ray_head, work, **places, workers=2, encoders=1, gpu_fraction=0.0)
    assert len(runs.samples(f"{work}/tokens", "tokens")) == 6


def test_train(ray_head: str, work: Path) -> None:
    places = {"input": [f"{work}/tokens"], "output": f"{work}/lm", "model": "tiny"}
    run_entry("train", ray_head, work, **places, steps=2, workers=2, min_workers=1, cpus_per_worker=1)
    assert (work / "lm" / "model").is_dir()
