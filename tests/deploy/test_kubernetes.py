"""Manifests of `deploy/kuberay`: by KubeRay's schemas, by the parsers of the commands, and by their own rules."""

import copy
import importlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import read_settings
from tests.conftest import ROOT, SHARED
from tests.deploy import manifests
from videolavit.ray_setup import KEEPALIVE

SCHEMAS = SHARED / "reference" / "kuberay-crds"
FILES = {
    "cluster.yaml": "rayclusters",
    **{f"{job}.yaml": "rayjobs" for job in manifests.JOBS},
    "service.yaml": "rayservices",
}
"""Manifest -> kind of resource."""


def schema_of(kind: str) -> dict[str, Any]:
    """JSON schema of KubeRay's resources of a kind, which takes no field that it does not name."""
    definition = yaml.load((SCHEMAS / f"ray.io_{kind}.yaml").read_text(), yaml.CSafeLoader)
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """Schema that refuses unknown fields, which a cluster would drop without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    has_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not in the shared material")
@pytest.mark.parametrize("name", FILES)
def test_manifests_fit_the_schemas_of_kuberay(name: str) -> None:
    validator = jsonschema.Draft4Validator(schema_of(FILES[name]))
    manifest = manifests.document(name)
    manifest["metadata"] = {}  # the schemas leave it to Kubernetes
    assert [f"{'.'.join(map(str, one.path))}: {one.message}" for one in validator.iter_errors(manifest)] == []
    wrong = copy.deepcopy(manifest)
    wrong["spec"]["entryPoint"] = "python"
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize("job", manifests.JOBS)
def test_commands_and_their_values_are_as_the_parsers_want_them(
    job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = manifests.values()[f"{job}.yaml"]
    (tmp_path / f"{job}.yaml").write_text(values)
    words = [word.replace(manifests.VALUES, f"{tmp_path}/") for word in manifests.entry(job)]
    assert words[:3] == ["python", "-m", f"jobs.{job}"]
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"jobs.{job}").main([*words[3:], "--print-config"])
    shown = capsys.readouterr()
    assert end.value.code == 0, shown.err
    assert yaml.safe_load(values).items() <= yaml.safe_load(shown.out).items()


def test_the_service_has_settings_that_it_takes() -> None:
    config = yaml.safe_load(manifests.document("service.yaml")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    settings = read_settings(config["applications"][0]["args"])
    assert application.import_path == "serve.application:build"
    assert settings.database is not None  # SQLite is not for several nodes
    assert config["http_options"]["host"] == settings.host
    scaled = [replicas.replica_range for replicas in settings.all_replicas]
    assert all(fewest < most for fewest, most in scaled)
    (group,) = manifests.clusters()["service.yaml"]["workerGroupSpecs"]
    gpus = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    needed = [sum(r.num_gpus * r.replica_range[end] for r in settings.all_replicas) for end in (0, 1)]
    assert needed[0] <= gpus * group["minReplicas"]
    assert needed[1] > gpus * group["minReplicas"], "the cluster would never grow"


@pytest.mark.parametrize("name", FILES)
def test_every_pod_has_what_its_node_needs(name: str) -> None:
    """No root, the values, the shared folder, credentials, and as much memory as it asks for."""
    cluster = manifests.clusters()[name]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert cluster["rayVersion"] == pinned["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in manifests.pods(cluster):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"configMapRef": {"name": "videolavit-environment"}} in container["envFrom"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"values", "shared"} <= {volume["name"] for volume in pod["volumes"]}
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"] == ("videolavit-cuda" if has_gpu else "videolavit-cpu")
    assert {f"RAY_{name}": str(value) for name, value in KEEPALIVE.items()}.items() <= manifests.environment().items()


def test_decoders_are_spot_and_trainers_have_gpus() -> None:
    def groups(name: str) -> dict[str, Any]:
        return {group["groupName"]: group for group in manifests.clusters()[name]["workerGroupSpecs"]}

    assert {name: set(groups(name)) for name in FILES} == {
        "cluster.yaml": {"decoders", "gpus"},
        "decompose.yaml": {"decoders"},
        "tokenize.yaml": {"decoders", "gpus"},
        "train.yaml": {"gpus"},
        "service.yaml": {"gpus"},
    }
    for name in ("cluster.yaml", "decompose.yaml", "tokenize.yaml"):
        pod = groups(name)["decoders"]["template"]["spec"]
        assert "spot" in pod["nodeSelector"].values()
        assert groups(name)["decoders"]["minReplicas"] == 0
    train = yaml.safe_load(manifests.values()["train.yaml"])
    group = groups("train.yaml")["gpus"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert train["workers"] == group["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert train["min_workers"] == group["minReplicas"] * int(limits["nvidia.com/gpu"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_images_come_from_one_place() -> None:
    """By the same Kustomize that `kubectl apply -k` calls."""
    done = subprocess.run(["kubectl", "kustomize", manifests.FOLDER], capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"]["labels"]["videolavit/part"] for one in rendered} == {
        "values",
        "cluster",
        "service",
        *manifests.JOBS,
    }
    images = [line.split()[-1] for line in done.stdout.splitlines() if line.strip().startswith("image:")]
    named = yaml.safe_load((manifests.FOLDER / "kustomization.yaml").read_text())["images"]
    assert set(images) == {f"{one['newName']}:{one['newTag']}" for one in named}
