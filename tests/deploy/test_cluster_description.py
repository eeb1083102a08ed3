"""`cluster.yaml`, by Ray's own validator, with the defaults filled in as `ray up` does."""

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT
from videolavit.ray_setup import KEEPALIVE


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return dict(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_the_description_is_valid(config: dict[str, Any]) -> None:
    validate_config(config)
    assert config["available_node_types"]["decompose"]["max_workers"] <= config["max_workers"]
    assert set(config["file_mounts"].values()) == {
        "~/.ray/auth_token"  # made once by `ray get-auth-token --generate`
    }


def test_a_cluster_asks_for_a_token_and_shows_its_dashboard_to_its_own_node_only(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if " ray start " in command]
        words = start.split()
        assert "RAY_AUTH_MODE=token" in words[: words.index("ray")]
        assert {f"RAY_{name}={value}" for name, value in KEEPALIVE.items()} <= set(words)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_every_node_has_the_image_an_instance_profile_and_the_shared_folder(config: dict[str, Any]) -> None:
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/"), name  # Ray's default is years old
        assert node["IamInstanceProfile"]["Name"] == ("videolavit-head" if name == "head" else "videolavit-node")
    docker = config["docker"]
    assert "head_image" not in docker
    assert "worker_image" not in docker
    assert "--volume /shared:/shared" in docker["run_options"]
    assert any("mount -t nfs4" in line and "/shared" in line for line in config["initialization_commands"])
    registry, _, tag = docker["image"].partition("/")
    assert tag == "videolavit:0.1.0-cuda"
    assert registry in config["initialization_commands"][0]
