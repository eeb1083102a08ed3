"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "platform/videolavit": set(),
    "pipelines": {"ray"},
    "jobs": {"ray", "pipelines", "serve"},
    "serve": {"ray"},
}
ROOMS = {"ray", "pipelines", "jobs", "serve"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        foreign = (_imported(file) & ROOMS) - MAY_IMPORT[folder] - {folder}
        assert not foreign, f"{file.relative_to(ROOT)} imports {foreign}"


def _imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_the_media_layer_loads_neither_ray_nor_torch() -> None:
    """In a fresh interpreter, through all that it imports."""
    code = "import sys, videolavit.media; print({'ray', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_one_room_talks_to_libav() -> None:
    """PyAV's next major version changes its API; its calls are in media/ (and its version in the run identity)."""
    elsewhere = {
        file.relative_to(ROOT).as_posix()
        for folder in MAY_IMPORT
        for file in (ROOT / folder).rglob("*.py")
        if "av" in _imported(file) and "media" not in file.parts
    }
    assert elsewhere <= {"platform/videolavit/records/identity.py"}
