"""Rules of the repository's structure."""

import ast
import re
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

SHARED_MODULES = {"config", "files", "perplexity", "progress", "recent", "sandbox", "scratch"}
"""Modules of `platform/videolavit` that import none of the others, and that all others may import."""

PACKAGES = {
    "media": set(),
    "ray_setup": set(),
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


def test_the_ingress_and_the_settings_load_no_networks_of_transformers() -> None:
    """Each process that does costs two seconds at the start, and a service has many processes."""
    code = "import sys, jobs.serve, serve.service; print('transformers.modeling_utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


DECODERS = {
    f"videolavit.{name}"
    for name in (
        "media.decompose",
        "media.iter_frames",
        "media.iter_pictures",
        "media.probe",
        "records.pictures.decode_image",
        "records.samples.decode_picture",
    )
}
IN_CHILDREN = {
    "platform/videolavit/records/foreign.py",
    "platform/videolavit/records/kinds/image.py",
    "platform/videolavit/records/kinds/ranges.py",
    "platform/videolavit/records/kinds/video.py",
    "platform/videolavit/records/prepare.py",
    "platform/videolavit/records/samples.py",
    "serve/uploads.py",
}
"""Modules whose functions decode foreign bytes, in child processes."""

OF_OWN_VIDEOS = {"platform/videolavit/evaluation/synthetic.py", "pipelines/proof_results.py"}
"""Modules that decode what this project rendered."""


def test_foreign_bytes_are_decoded_in_child_processes() -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for folder in TOP_FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "media" not in file.parts and DECODERS & _imported(file)
    }
    assert found == IN_CHILDREN | OF_OWN_VIDEOS


def test_only_media_imports_pyav() -> None:
    """PyAV's next major version changes its API; its calls are in media/ (and its version in the run identity)."""
    elsewhere = {
        file.relative_to(ROOT).as_posix()
        for folder in TOP_FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "av" in {name.split(".")[0] for name in _imported(file)} and "media" not in file.parts
    }
    assert elsewhere <= {"platform/videolavit/records/identity.py"}


def test_parquet_is_read_on_the_calling_thread() -> None:
    """A process that ends while Arrow's threads hold a Python file is aborted."""
    readers = {"pq.ParquetFile", "pq.read_table", "pyarrow.parquet.ParquetFile", "pyarrow.parquet.read_table"}
    for folder in TOP_FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            called = {ast.unparse(n.func) for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)}
            assert not called & readers, f"{file.relative_to(ROOT)} reads without `ParquetReader`"


LIBRARY = ("platform/videolavit", "pipelines", "serve")
"""Folders that are used as libraries: they never write to the terminal, end the process or read the command line."""

PROCESS_CALLS = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "Console"}
"""Calls that write to the terminal or end the process."""

PROCESS_NAMES = {"sys.argv", "sys.stdout", "sys.stderr", "SystemExit"}
"""Names that belong to whoever owns the process."""

OWN_PROCESS = {
    "platform/videolavit/sandbox/child.py": {"sys.argv"},  # entry point of the child process
    "platform/videolavit/sandbox/layers.py": {"os._exit"},
    "platform/videolavit/sandbox/serving.py": {"os._exit"},
    "pipelines/stages.py": {"os._exit"},  # entry point of a stage's process
    "serve/logs.py": {"sys.stderr"},  # log handler of a replica
}
"""Modules that run in a process of their own, and what they use there."""


def test_the_library_leaves_the_process_to_its_caller() -> None:
    """No print, no exit, no command line and no console; modules of processes of their own use what is listed."""
    found: dict[str, set[str]] = {}
    for folder in LIBRARY:
        files = sorted((ROOT / folder).rglob("*.py"))
        assert files
        for file in files:
            if used := _process_uses(ast.parse(file.read_text())):
                found[file.relative_to(ROOT).as_posix()] = used
            assert "rich" not in {name.split(".")[0] for name in _imported(file)}, f"{file.name} imports rich"
    assert found == OWN_PROCESS


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("def work():\n    print(1)", {"print"}),
        ("import sys\nsys.exit(1)", {"sys.exit"}),
        ("import sys\nwords = sys.argv[1:]", {"sys.argv"}),
        ("from sys import argv as words", {"sys.argv"}),
        ("raise SystemExit(2)", {"SystemExit"}),
        ("console = rich.console.Console()", {"Console"}),
        ("log.info('print')", set()),
    ],
)
def test_uses_of_the_process_are_found(code: str, used: set[str]) -> None:
    assert _process_uses(ast.parse(code)) == used


def _process_uses(tree: ast.Module) -> set[str]:
    """Calls of `PROCESS_CALLS` and uses of `PROCESS_NAMES`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            names |= {called, "Console" if called.endswith(".Console") else called} & PROCESS_CALLS
        elif isinstance(node, ast.Attribute | ast.Name):
            names |= {ast.unparse(node)} & PROCESS_NAMES
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & (PROCESS_CALLS | PROCESS_NAMES)
    return names


OPTION = re.compile(r"(?<![\w-])--[a-z]")


def test_the_library_speaks_of_its_own_settings() -> None:
    """No string of the library names an option of a command, which is another reader's word."""
    assert OPTION.search("see --output")
    assert not OPTION.search("a -- b")
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for folder in LIBRARY
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and OPTION.search(node.value)
    ]
    assert not found, "\n".join(found)


def test_one_name_for_one_thing() -> None:
    """Public classes, type aliases and constants have names of their own; type variables may share one."""
    places: dict[str, list[str]] = {}
    for folder in TOP_FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name in _defined(ast.parse(file.read_text())):
                places.setdefault(name, []).append(file.relative_to(ROOT).as_posix())
    assert {"VideoFile", "CLIP_SHARDS", "StoredTensor"} <= places.keys()
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def _defined(tree: ast.Module) -> set[str]:
    """Public classes, type aliases and constants that a module defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not _makes_type_variable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in names if name[0].isupper()}


def _makes_type_variable(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func) in {"TypeVar", "TypeVarTuple", "ParamSpec"}
