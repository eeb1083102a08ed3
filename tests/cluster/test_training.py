"""A training on other hosts than its driver: one of them is lost or cut off for a while, and it goes on."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.hosts import QUICK_HEALTH, Cluster, Job, Network, network
from tests.cluster.scenes import SHORT_CUT
from tests.conftest import moving_texture, wait_for
from tests.training.test_sources import write_run
from videolavit.media import write_mp4

CUTS = 2
APART = 20.0
"""Seconds between two cuts, in which the head finds the node alive again."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


def start(cluster: Cluster, tmp_path: Path, **more: int) -> Job:
    write_mp4(moving_texture(60, 64, 96, 0), tmp_path / "video.mp4", 6)
    clips = write_run(tmp_path / "clips", [{"source": str(tmp_path / "video.mp4")}])
    options = {"model": "tiny", "input": clips, "output": tmp_path / "run", "steps": 100000, "batch": 2}
    options |= {"micro-batch": 1, "log-every": 1, "save-every": 5, "workers": 2} | more
    words = [word for name in options for word in (f"--{name}", options[name])]
    job = cluster.start("train", "motion-tokenizer", *words)
    job.wait_until(lambda: bool(checkpoints(tmp_path)), "no checkpoint")
    return job


def test_training_over_two_hosts_waits_for_a_node_and_goes_on(hosts: Network, tmp_path: Path) -> None:
    cluster = Cluster(hosts, **QUICK_HEALTH)
    victim = [cluster.add() for _ in range(2)][1]
    job = start(cluster, tmp_path)
    assert json.loads(checkpoints(tmp_path)[-1].read_text())["world"] == 2

    victim.cut()
    wait_for(lambda: victim.address not in cluster.alive(), "the lost node counts as alive", limit=60)
    job.wait_until(lambda: "waiting for a node since" in job.shown, "no word about a node")
    before = set(checkpoints(tmp_path))
    cluster.add()
    job.wait_until(partial(is_newer, tmp_path, before), "it does not go on")
    assert "going on" in job.shown
    job.process.terminate()
    job.wait(120)
    assert "the same command continues" in job.shown


def test_a_short_cut_does_not_stop_a_training(hosts: Network, tmp_path: Path) -> None:
    cluster = Cluster(hosts)
    victim = cluster.add(2)
    job = start(cluster, tmp_path)
    for _ in range(CUTS):
        victim.cut()
        time.sleep(SHORT_CUT)
        before = set(checkpoints(tmp_path))
        victim.heal()
        wait_for(partial(is_newer, tmp_path, before), "it stands still", limit=15)
        time.sleep(APART)
    assert "continues from" not in job.shown  # the workers were not started again
    job.process.terminate()
    assert job.wait(60) == 143
    assert "the same command continues" in job.shown


def is_newer(folder: Path, before: set[Path]) -> bool:
    """True if there is a checkpoint that was not there before."""
    return bool(set(checkpoints(folder)) - before)


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "run" / "checkpoints").glob("*/manifest.json"))
