"""A training over two hosts, one of which is lost: it says that it waits for a node, and goes on when one joins."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import QUICK_HEALTH, Cluster, Network, network
from tests.conftest import moving_texture, wait_for
from tests.training.test_sources import write_run
from videolavit.media import write_mp4

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


def test_training_over_two_hosts_waits_for_a_node_and_goes_on(hosts: Network, tmp_path: Path) -> None:
    write_mp4(moving_texture(60, 64, 96, 0), tmp_path / "video.mp4", 6)
    clips = write_run(tmp_path / "clips", [{"source": str(tmp_path / "video.mp4")}])
    cluster = Cluster(hosts, **QUICK_HEALTH)
    victim = [cluster.add() for _ in range(2)][1]
    options = {"model": "tiny", "input": clips, "output": tmp_path / "run", "steps": 100000, "batch": 2}
    options |= {"micro-batch": 1, "log-every": 1, "save-every": 5, "workers": 2}
    job = cluster.start(
        "train", "motion-tokenizer", *[word for name in options for word in (f"--{name}", options[name])]
    )
    job.wait_until(lambda: bool(checkpoints(tmp_path)), "no checkpoint")
    assert json.loads(checkpoints(tmp_path)[-1].read_text())["world"] == 2

    victim.cut()
    wait_for(lambda: victim.address not in cluster.alive(), "the lost node counts as alive", limit=60)
    job.wait_until(lambda: "waiting for a node since" in job.shown, "no word about a node")
    before = set(checkpoints(tmp_path))
    cluster.add()
    job.wait_until(lambda: bool(set(checkpoints(tmp_path)) - before), "it does not go on")
    assert "going on" in job.shown
    job.process.terminate()
    job.wait(120)
    assert "the same command continues" in job.shown


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "checkpoints").glob("*/manifest.json"))
