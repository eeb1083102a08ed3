"""Settings, API keys and admission of the service."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.application import build
from serve.errors import ApiError
from serve.keys import Admission, add_key, read_keys
from serve.settings import read_settings
from tests.conftest import ROOT


def test_deployments_have_batch_sizes_that_suit_them() -> None:
    settings = read_settings({"language_model": {"max_replicas": 2}, "video_detokenizer": {"num_gpus": 1}})
    assert settings.language_model.largest_batch == 32
    assert (settings.keyframe_detokenizer.largest_batch, settings.video_detokenizer.largest_batch) == (2, 8)
    assert read_settings({"video_detokenizer": {"batch_size": 4}}).video_detokenizer.largest_batch == 4


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ({}, (2, 2)),
        ({"num_gpus": 0.5}, (1, 1)),
        ({"max_replicas": 1}, (1, 1)),
        ({"max_replicas": 4}, (2, 4)),
        ({"min_replicas": 3}, (3, 3)),
        ({"min_replicas": 1, "max_replicas": 2}, (1, 2)),
    ],
)
def test_a_video_detokenizer_without_a_gpu_has_two_replicas_by_default(
    values: dict[str, object], replicas: tuple[int, int]
) -> None:
    settings = read_settings({"video_detokenizer": values})
    assert settings.video_detokenizer.replica_range == replicas
    assert settings.keyframe_detokenizer.replica_range == (1, 1)


def test_the_cluster_config_is_one_of_rays_own_schema_and_builds() -> None:
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert application.import_path == "serve.application:build"
    graph = build(config["applications"][0]["args"])
    assert graph._bound_deployment.name == "Ingress"
    with pytest.raises(ValueError, match="absolute path"):
        build({"storage": "here"})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modle": "tiny"}, "modle"),
        ({"limits": {"in_flights": 3}}, "limits.in_flights"),
        ({"limits": {"in_flight": 0}}, "in_flight must be above 0"),
        ({"language_model": {"batch_size": "many"}}, "language_model.batch_size"),
        ({"language_model": {"num_gpus": -1}}, "at least 0"),
        ({"host": "0.0.0.0"}, "give API keys"),
        ({"host": "::"}, "give API keys"),
        ({"host": ""}, "host must name an address"),
        ({"port": 80999}, "between 1 and 65535"),
        ({"images_as_video_fps": 0}, "above 0 and at most 60"),
        ({"port": 0}, "between 1 and 65535"),
        ({"lease_seconds": 0}, "lease_seconds must be above 0"),
        ({"storage": "s3://bucket/x"}, "give a database"),
        ({"root_path": "video/"}, "root_path begins with a slash"),
        ({"cors_origins": ["*"]}, "every web page"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_settings(values)


def test_without_keys_only_this_machine_is_answered() -> None:
    admission = Admission(None, max_in_flight=3, max_body_bytes=1)
    assert admission.authenticate(None, "127.0.0.1") == admission.authenticate(None, "::1")
    for client in ("10.0.0.7", "93.184.215.14", ""):
        with pytest.raises(ApiError) as refused:
            admission.authenticate(None, client)
        assert refused.value.status == 403


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    secret = add_key(file, "a")
    assert secret not in Path(file).read_text()
    assert Path(file).stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="already has a key a"):
        add_key(file, "a")
    add_key(file, "b")
    assert [key.name for key in read_keys(file)] == ["a", "b"]
    Path(file).write_text('{"keys": [{"name": "a", "sha256": "abc"}]}')
    with pytest.raises(ValueError, match="not a file of API keys"):
        read_keys(file)
