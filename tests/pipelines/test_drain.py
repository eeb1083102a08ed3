"""A node that Ray announces to take away, under a training with a worker there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.conftest import ROOT, command
from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder

LIMIT = 240.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores, and a node with two; without the token of the cluster that other tests share."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=2)
    yield made
    made.shutdown()


def test_a_drain_notice_saves_first(cluster: Cluster, tmp_path: Path) -> None:
    model = ModelFolder("tiny")
    tokens = write_run(tmp_path / "tokens", model, random_rows(model, 20))
    output = tmp_path / "run"
    options = {"steps": 100_000, "batch": 2, "micro-batch": 2, "log-every": 1, "save-every": 100_000, "workers": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--objective.sequence_length", 192, "--input", tokens, "--output", output, "--cpus-per-worker", 0.5]
    job = subprocess.Popen(
        command("train", "language-model", "--model", "tiny", *words),
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + LIMIT
    while not (output / "metrics.jsonl").exists():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (node,) = [one for one in cluster.list_all_nodes() if one.node_id != cluster.head_node.node_id]
    notice = [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        300,
    ]
    ray = Path(sys.executable).with_name("ray")
    drained = [ray, "drain-node", "--address", cluster.address, "--node-id", node.node_id, *notice]
    subprocess.run(list(map(str, drained)), check=True, capture_output=True)
    _, error = job.communicate(timeout=LIMIT)
    assert job.returncode == 143, error
    assert "which is saved; the same command continues" in error
    assert len(list((output / "checkpoints").glob("*/manifest.json"))) == 1
