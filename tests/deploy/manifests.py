"""Kubernetes manifests of `deploy/kuberay`, read as data."""

import shlex
from typing import Any

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
JOBS = ("decompose", "tokenize", "train")
VALUES = "/etc/videolavit/"
"""Folder in which containers find the values of commands."""


def documents(name: str) -> list[dict[str, Any]]:
    """Documents of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def document(name: str) -> dict[str, Any]:
    """The only document of a file."""
    (found,) = documents(name)
    return found


def values() -> dict[str, str]:
    """File name -> options of a command, as YAML."""
    return next(one["data"] for one in documents("values.yaml") if one["metadata"]["name"] == "videolavit")


def environment() -> dict[str, str]:
    """Environment variables of every container."""
    named = (one for one in documents("values.yaml") if one["metadata"]["name"] == "videolavit-environment")
    return next(named)["data"]


def entry(job: str) -> list[str]:
    """Command that a RayJob runs, as words."""
    return shlex.split(document(f"{job}.yaml")["spec"]["entrypoint"])


def clusters() -> dict[str, dict[str, Any]]:
    """File name -> cluster that it describes."""
    found = {"cluster.yaml": document("cluster.yaml")["spec"]}
    found |= {f"{job}.yaml": document(f"{job}.yaml")["spec"]["rayClusterSpec"] for job in JOBS}
    return found | {"service.yaml": document("service.yaml")["spec"]["rayClusterConfig"]}


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Pods of a cluster: that of the head, and one of each group."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]
