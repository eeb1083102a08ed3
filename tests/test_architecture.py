"""Rules of the repository's structure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOP_FOLDERS = {
    "platform/videolavit": set(),
    "pipelines": {"videolavit", "ray"},
    "jobs": {"videolavit", "ray", "pipelines", "serve"},
    "serve": {"videolavit", "ray"},
}
"""Imports that each top-level folder is allowed, of these packages."""

SHARED_MODULES = {"config", "files", "isolation", "perplexity", "progress", "recent"}
"""Modules of `platform/videolavit` that import none of the others, and that all others may import."""

PACKAGES = {
    "media": set(),
    "vocabulary": set(),
    "models": {"media", "vocabulary"},
    "records": {"media", "vocabulary", "models"},
    "synth": {"media", "records"},
    "generation": {"media", "vocabulary", "models", "records"},
    "evaluation": {"media", "vocabulary", "models", "records", "synth", "generation"},
    "training": {"media", "vocabulary", "models", "records", "synth", "generation", "evaluation"},
}
"""Imports that each folder and module of `platform/videolavit` is allowed, besides itself and the shared modules."""


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_arrows_between_the_top_folders(folder: str) -> None:
    """The library knows nothing of Ray, pipelines, commands and the service."""
    packages = {"videolavit", "ray", "pipelines", "jobs", "serve"}
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        imported = {name.split(".")[0] for name in _imported(file)} & packages
        foreign = imported - TOP_FOLDERS[folder] - {Path(folder).name}
        assert not foreign, f"{file.relative_to(ROOT)} imports {foreign}"


def test_arrows_inside_the_platform() -> None:
    root = ROOT / "platform" / "videolavit"
    files = sorted(root.rglob("*.py"))
    assert {file.relative_to(root).parts[0].removesuffix(".py") for file in files} == {
        "__init__",
        *PACKAGES,
        *SHARED_MODULES,
    }
    for file in files:
        package = file.relative_to(root).parts[0].removesuffix(".py")
        imported = {name.split(".")[1] for name in _imported(file) if name.startswith("videolavit.")}
        allowed = {package} | (PACKAGES[package] | SHARED_MODULES if package in PACKAGES else set())
        backward = (imported & (PACKAGES.keys() | SHARED_MODULES)) - allowed
        assert not backward, f"{file.relative_to(ROOT)} imports {backward}"


def _imported(file: Path) -> set[str]:
    """Absolute names of all that a file imports, within functions and for type checkers too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(_import_root(file)).parent.parts)
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def _import_root(file: Path) -> Path:
    """Folder from which the packages of a file are imported."""
    platform = ROOT / "platform"
    return platform if file.is_relative_to(platform) else ROOT


def test_the_media_layer_loads_neither_ray_nor_torch() -> None:
    """In a fresh interpreter, through all that it imports."""
    code = "import sys, videolavit.media; print({'ray', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_media_imports_pyav() -> None:
    """PyAV's next major version changes its API; its calls are in media/ (and its version in the run identity)."""
    elsewhere = {
        file.relative_to(ROOT).as_posix()
        for folder in TOP_FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "av" in {name.split(".")[0] for name in _imported(file)} and "media" not in file.parts
    }
    assert elsewhere <= {"platform/videolavit/records/identity.py"}
