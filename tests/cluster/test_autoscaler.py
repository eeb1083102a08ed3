"""A cluster that grows from nothing for a run, and shrinks again, with Ray's autoscaler and its provider for tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import runs
from tests.cluster.hosts import OBJECT_STORE, RAY_PORT, Cluster, Network, network
from tests.conftest import moving_texture, wait_for
from videolavit.media import write_mp4

HEAD_ID = "f" * 51 + "00000"
"""Name that the provider gives to the head."""

MOST_NODES, VIDEOS = 2, 8

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


def description(address: str) -> dict[str, object]:
    """Description of a cluster whose nodes are processes of one host."""
    worker = {"resources": {"CPU": 1, "object_store_memory": OBJECT_STORE}, "node_config": {}}
    return {
        "cluster_name": "growing",
        "max_workers": MOST_NODES,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{address}:{RAY_PORT}",
            # all nodes have one address, by which the autoscaler would tell apart which of them are idle
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker | {"min_workers": 0, "max_workers": MOST_NODES},
        },
        "head_node_type": "head",
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "file_mounts_sync_continuously", "initialization_commands")},
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
    }


def test_a_cluster_grows_from_nothing_and_shrinks(hosts: Network, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_mp4(moving_texture(24 * 20, 288, 352, 0), tmp_path / "in" / "0.mp4", 24)
    for index in range(1, VIDEOS):
        os.link(tmp_path / "in" / "0.mp4", tmp_path / "in" / f"{index}.mp4")
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(description(f"{hosts.prefix}.2")))
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    cluster = Cluster(hosts, [f"--autoscaling-config={file}"], **environment)

    def cores() -> float:
        return sum(cluster.alive().values())

    assert cores() == 0
    job = cluster.start("decompose", "--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", MOST_NODES)
    job.wait_until(lambda: cores() > 0, "the cluster does not grow")
    assert job.wait(600) == 0, job.shown
    assert len(runs.samples(str(tmp_path / "out"))) == VIDEOS
    wait_for(lambda: cores() == 0, "the cluster does not shrink")
