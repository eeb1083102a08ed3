"""Steps of the Dockerfile, run in an empty environment: what they install starts, and needs nothing else."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.dockerfile import Step, steps

OF_ROOT = ("apt-get update", 'echo "export PATH')
"""Beginnings of the steps that change a whole system, and that are left out here."""

PLACES = ("/opt/videolavit", "/src")
"""Folders of the image that steps write to."""

MINUTES = 25


def build_steps() -> list[Step]:
    """Steps of the first stage, and those after it that run a command."""
    found = steps()
    second = [index for index, step in enumerate(found) if step.word == "FROM"][1]
    later = [step for step in found[second:] if step.word == "RUN"]
    assert all(step.rest.startswith(OF_ROOT) for step in later), "a step that this test does not know"
    return found[:second]


@pytest.mark.timeout(60 * MINUTES)
def test_the_steps_make_an_environment_in_which_everything_starts(tmp_path: Path) -> None:
    def moved(text: str) -> str:
        for place in PLACES:
            text = text.replace(place, f"{tmp_path}{place}")
        return text

    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    # an empty environment, but for the way to the packages
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP"))}
    environment |= {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(tmp_path), "VARIANT": "cpu", "TORCH_INDEX": ""}
    folder = tmp_path

    def run(command: str) -> str:
        done = subprocess.run(["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    for step in build_steps():
        words = moved(step.rest)
        if step.word == "WORKDIR":
            folder = Path(words)
            folder.mkdir(parents=True)
        elif step.word == "ENV":
            name, value = words.split("=", 1)
            environment[name] = value.replace(f"${name}", environment.get(name, ""))
        elif step.word == "COPY":
            *sources, target = shlex.split(step.rest)
            for source in sources:
                place = folder / target / (source if target == "./" else "")
                (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
        elif step.word == "RUN":
            run(words)
    folder = tmp_path  # not the sources
    assert run("videolavit --version").startswith("videolavit ")
    assert "python -m" not in run("ray --version")
    run("pip check")
    for module in ("jobs.decompose", "jobs.tokenize", "jobs.serve"):
        assert "usage: videolavit" in run(f"python -m {module} --help")
    run("python -c 'import serve.application, pipelines.train, boto3, psycopg, peft, pillow_heif'")
    for line in yaml.safe_load((ROOT / "cluster.yaml").read_text())["setup_commands"]:
        run(line)
    place = run("python -c 'import videolavit; print(videolavit.__file__)'")
    assert place.startswith(f"{tmp_path}/opt/videolavit/")
