"""The cluster description, and the job as a data team submits it."""

import subprocess
import sys
from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests import runs
from tests.conftest import ROOT


def test_cluster_description_is_valid() -> None:
    """By Ray's own validator, with the defaults filled in as `ray up` does."""
    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"]["decompose"]["max_workers"] <= config["max_workers"]
    for target, source in config["file_mounts"].items():
        assert (ROOT / source).exists(), f"{target} is mounted from nowhere"


def test_submitted_job(ray_head: str, small_corpus: Path, tmp_path: Path) -> None:
    """`ray job submit` with a runtime environment from the working directory, on a real head node."""
    output = tmp_path / "out"
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")),
            "job",
            "submit",
            "--runtime-env",
            "runtime-env.yaml",
            "--",
            "python",
            "-m",
            "jobs.decompose",
            "--input",
            str(small_corpus),
            "--output",
            str(output),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert len(runs.samples(str(output))) == 6
    assert runs.run(str(output))["complete"]
