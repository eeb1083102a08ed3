"""Data runs over several hosts that are killed and cut off: the content of the undisturbed run, and nothing twice."""

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.hosts import Host
from tests.cluster.scenes import (
    Run,
    Scene,
    cut_for_good,
    cut_shortly,
    driver_killed,
    host_killed,
    raylet_killed,
    scene,
)

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cluster_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("scene") / "shared") as made:
        yield made


@pytest.fixture
def hosts(cluster_scene: Scene) -> Iterator[list[Host]]:
    """Two nodes."""
    hosts = [cluster_scene.cluster.add() for _ in range(2)]
    yield hosts
    for host in hosts:
        host.kill()


@pytest.mark.parametrize(
    ("pipeline", "storage", "fault"),
    [
        ("decompose", "s3", host_killed),
        ("decompose", "shared", cut_shortly),
        ("decompose", "s3", driver_killed),
        ("tokenize", "shared", cut_for_good),
        ("tokenize", "s3", raylet_killed),
    ],
)
def test_a_run_survives(
    cluster_scene: Scene, hosts: list[Host], pipeline: str, storage: str, fault: Callable[[Run, Host], None]
) -> None:
    run = cluster_scene.run(pipeline, storage, f"{pipeline}-{storage}-{fault.__name__}")
    run.job.wait_until(lambda: run.has_begun() and any(map(run.is_at_work, hosts)), "no shards")
    kept = run.shards()
    fault(run, next(filter(run.is_at_work, hosts)))
    assert run.job.wait(600) == 0, run.job.shown
    assert set(kept) <= set(run.shards())
    assert run.content() == cluster_scene.expected[pipeline]
