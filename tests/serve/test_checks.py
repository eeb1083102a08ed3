"""Mistakes that are found before a service starts."""

import json
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.checks import check_settings
from serve.settings import read_settings
from tests.conftest import ROOT, command, environment_without_ray, free_port
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    ModelFolder("tiny").save(folder)
    return folder


@pytest.fixture
def taken() -> Iterator[int]:
    """Port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def refused(values: dict[str, object]) -> str:
    """Message about a mistake, which is one line."""
    with pytest.raises((ValueError, ModelError)) as found:
        check_settings(read_settings({"port": free_port(), "storage": "/proc/not-reached"} | values))
    assert "\n" not in str(found.value)
    return str(found.value)


def test_addresses_that_cannot_be_listened_on_are_refused(taken: int, tmp_path: Path) -> None:
    assert f"port {taken}: Address already in use" in refused({"port": taken})
    (tmp_path / "keys").write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}]}))
    assert "cannot listen on 192.0.2.250" in refused({"host": "192.0.2.250", "keys": str(tmp_path / "keys")})


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot read the keys"), ("{", "not a file of API keys"), ('{"keys": []}', "has no key")],
)
def test_files_of_keys_that_cannot_be_read_are_refused(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    assert says in refused({"keys": str(file)})


def test_incomplete_models_are_refused(saved: Path, tmp_path: Path) -> None:
    def broken(change: str) -> Path:
        return Path(shutil.copytree(saved, tmp_path / change))

    assert "no model in" in refused({"model": str(tmp_path / "nothing")})
    (broken("cut") / "model.json").write_text("{")
    assert "model.json" in refused({"model": str(tmp_path / "cut")})
    shutil.rmtree(broken("part") / "video_detokenizer" / "unet")
    assert "has no video_detokenizer/unet" in refused({"model": str(tmp_path / "part")})
    (weights,) = (broken("weights") / "visual_tokenizer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot read {weights}" in refused({"model": str(tmp_path / "weights")})


def test_storage_and_databases_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write to the storage" in refused({"storage": str(tmp_path / "file" / "folder")})
    assert "cannot write to the storage" in refused({"storage": "/proc/data"})
    storage = str(tmp_path / "storage")
    assert "database cannot be used" in refused({"storage": storage, "database": "sqlite:////proc/jobs.sqlite"})
    assert "database cannot be used" in refused({"storage": storage, "database": "nonsense"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "jobs.sqlite").write_text("this is no database" * 100)
    assert "database cannot be used" in refused({"storage": str(tmp_path / "other")})


def test_ipv6_addresses_are_accepted(tmp_path: Path) -> None:
    settings = read_settings({"host": "::1", "port": free_port(), "storage": str(tmp_path)})
    assert settings.url == f"http://[::1]:{settings.port}"
    assert not check_settings(settings).is_trained


def test_a_mistake_ends_the_command_with_one_line(taken: int, tmp_path: Path) -> None:
    words = command("serve", "--port", taken, "--storage", tmp_path)
    before = _core_seconds()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment_without_ray())
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot listen on")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert _core_seconds() - before < 20  # on one core; by the clock it takes longer where other tests run


def _core_seconds() -> float:
    """Time that cores have worked for ended child processes, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
