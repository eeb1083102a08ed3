"""A driver whose worker answers while its host is cut off: the connection's end does not reach it either."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Cluster, Network, network
from tests.conftest import ROOT, wait_for
from videolavit.ray_setup import KEEPALIVE

CUT = 24
"""Length of the cut, in seconds: longer than a server sends an answer again, shorter than a node is taken for dead."""

DRIVER = """
import sys, time
import ray
from pipelines.session import ray_session

@ray.remote(num_cpus=0.1)
class Worker:
    def answer(self, seconds):
        time.sleep(seconds)

with ray_session():
    worker = Worker.remote()
    ray.get(worker.answer.remote(0))
    begin = time.monotonic()
    answer = worker.answer.remote(7)
    print("asked", flush=True)
    try:
        ray.get(answer)
        print("answered")
    except ray.exceptions.ActorUnavailableError:
        print("lost", time.monotonic() - begin)
"""


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network(PYTHONPATH=f"{ROOT / 'platform'}:{ROOT}") as made:
        yield made


def test_a_driver_hears_that_its_answer_was_lost(hosts: Network, tmp_path: Path) -> None:
    """Ray's own keepalives would tell it after five minutes. The cluster was started without those of this project."""
    cluster = Cluster(hosts)
    host, log = cluster.add(), tmp_path / "log"
    driver = cluster.head.start([sys.executable, "-c", DRIVER], log, RAY_ADDRESS=cluster.address)
    wait_for(lambda: "asked" in log.read_text() or driver.poll() is not None, "no question")
    with pytest.raises(TimeoutError):
        wait_for(lambda: driver.poll() is not None, "still waiting", 4)
    host.cut()
    with pytest.raises(TimeoutError):
        wait_for(lambda: driver.poll() is not None, "still waiting", CUT)
    host.heal()
    most = sum(KEEPALIVE.values()) / 1000
    wait_for(lambda: driver.poll() is not None, "the loss was not noticed", 2 * most)
    word, seconds = log.read_text().splitlines()[-1].split()
    assert (word, driver.returncode) == ("lost", 0)
    assert CUT < float(seconds) < most + 10
