"""The wheel, installed into an empty folder: everything that a user needs is in it.

The interpreter runs without its `site` module, so that the checkout, which is installed as editable, is not on its
path: it sees the standard library, the folder, and the dependencies.
"""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Python = Callable[..., str]
SHAPES = "videolavit/models/shipped/shapes"
DATA_FILES = (".yaml", ".html", ".css", ".js", ".svg", ".j2", ".json", ".safetensors")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Runs the interpreter on arguments, in an empty folder, with the wheel; `{}` in them is where it is installed."""
    built, installed, empty = (tmp_path_factory.mktemp(name) for name in ("built", "installed", "empty"))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(installed),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    path = os.pathsep.join([str(installed), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}])

    def run(*arguments: str) -> str:
        command = [sys.executable, "-S", *(argument.replace("{}", str(installed)) for argument in arguments)]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_package_comes_from_the_wheel_and_declares_its_types(python: Python) -> None:
    code = """
import os, sys, videolavit, pipelines, jobs, serve
for package in (videolavit, pipelines, jobs, serve):
    folder = os.path.dirname(package.__file__)
    assert folder == os.path.join(sys.argv[1], package.__name__), folder
    assert os.path.isfile(os.path.join(folder, "py.typed")), folder
"""
    python("-c", code, "{}")


def test_the_command_runs(python: Python) -> None:
    version = importlib.metadata.version("videolavit")
    assert python("{}/bin/videolavit", "--version") == f"videolavit {version}\n"
    assert python("-c", "import videolavit; print(videolavit.__version__)") == f"{version}\n"
    assert "usage: videolavit COMMAND" in python("{}/bin/videolavit", "--help")
    assert "--input" in python("{}/bin/videolavit", "decompose", "--help")


def test_the_library_decomposes(python: Python, small_corpus: Path) -> None:
    code = "import sys; from videolavit.media import decompose; print(len(list(decompose(sys.argv[1]))))"
    assert python("-c", code, str(small_corpus / "video0.mp4")) == "1\n"


def test_data_files_are_found(python: Python) -> None:
    """Presets, recipes, the report's template, the service's page and configuration, and the model that ships."""
    code = """
from videolavit.models.presets import load_preset
from videolavit.records.report import render_page
for preset in ("tiny", "small", "video-lavit-7b"):
    load_preset(preset)
assert "<html" in render_page(title="title", facts=[], cells=[])
"""
    python("-c", code)
    found = """
import sys
from pathlib import Path
root = Path(sys.argv[1])
found = (path.relative_to(root) for path in root.rglob("*") if path.suffix in sys.argv[2:])
print(*sorted(str(path) for path in found if not path.parts[0].endswith(".dist-info")))
"""
    shipped = {
        path.relative_to(folder).as_posix()
        for folder in (ROOT / "platform", ROOT)
        for package in ("videolavit", "pipelines", "jobs", "serve")
        for path in (folder / package).rglob("*")
        if path.suffix in DATA_FILES
    }
    assert {"serve/config.yaml", "serve/page/index.html", "serve/page/page.js", f"{SHAPES}/model.json"} <= shipped
    assert set(python("-c", found, "{}", *DATA_FILES).split()) == shipped
