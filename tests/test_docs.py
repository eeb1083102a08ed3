"""The documentation: its links lead somewhere, and its commands, imports and tests exist."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from jobs.cli import COMMANDS
from serve.settings import Limits
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/README.md",
    *(ROOT / "docs").glob("*.md"),
]
README_LINES = 180
GLOSSARY_TERMS = range(20, 41)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXAMPLE = re.compile(r"^(?:\S+=\S+ )*(videolavit|python|make|serve|ray) ")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors that a page's headings have: lower case, without punctuation, with dashes for spaces."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not link.startswith(("http://", "https://"))]


def commands() -> list[list[str]]:
    """Every command line in a code block, as words and once, without what a shell adds."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language in ("", "sh", "bash"):
                found |= dict.fromkeys(map(tuple, _commands(block)))
    return [list(words) for words in found]


def _commands(block: str) -> Iterator[list[str]]:
    for line in block.replace("\\\n", " ").splitlines():
        if EXAMPLE.match(line):
            words = shlex.split(line, comments=True)
            for part in " ".join(shlex.quote(word) for word in words).split(" '&&' "):
                yield shlex.split(part)


def job_of(words: list[str]) -> list[str] | None:
    """Name and arguments of the job that a command line runs; None if it runs none."""
    if words[:2] == ["ray", "job"]:
        words = words[words.index("--") + 1 :]
    if words[0] == "videolavit":
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("jobs."):
        return [words[2].removeprefix("jobs.").replace("_", "-"), *words[3:]]
    return None


COMMAND_LINES = commands()
JOB_LINES = [job for words in COMMAND_LINES if (job := job_of(words)) is not None]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert target.suffix == ".md"
            assert anchor in anchors(target), f"{link}: there is no such heading"


def test_a_missing_file_or_heading_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n[x](#a-b-c) [y](nowhere.md)\n```\n[z](no-link.md)\n```\n")
    assert links(page) == ["#a-b-c", "nowhere.md"]
    assert anchors(page) == {"a-b-c"}


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = {README}, {README}
    while new:
        found = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page)}
        new = {page for page in found if page.suffix == ".md"} - reached
        reached |= new
    assert set(PAGES) <= reached


def test_the_limits_and_their_defaults_are_those_of_the_service() -> None:
    section = (ROOT / "docs/running-the-service.md").read_text().partition("## Limits")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", section, re.MULTILINE)
    assert {name: float(value.replace(",", "")) for name, value in named} == asdict(Limits())


def test_the_glossary_has_a_readable_number_of_terms() -> None:
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    assert len(terms) in GLOSSARY_TERMS
    assert len(set(terms)) == len(terms)


@pytest.mark.parametrize("words", JOB_LINES, ids=" ".join)
def test_commands_are_as_the_parsers_want_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every sub-command, option and value, by the job's own parser."""
    assert words[0] in [*COMMANDS, "--version"]
    if words[0] == "--version":
        return
    job = importlib.import_module(f"jobs.{words[0].replace('-', '_')}")
    with pytest.raises(SystemExit) as end:
        job.main([*words[1:], "--print-config"])
    assert end.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["decompose", "--inputs", "x"], ["decompose", "--workers", "many"], ["train", "vae", "--config", "huge"]]
)
def test_a_mistake_in_a_command_would_be_found(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job = importlib.import_module(f"jobs.{words[0]}")
    with pytest.raises(SystemExit) as end:
        job.main([*words[1:], "--print-config"])
    assert end.value.code == 2


def test_the_other_commands_name_what_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in COMMAND_LINES:
        if words[0] == "make":
            assert words[1] in targets, f"make has no target {words[1]}"
        elif words[:2] == ["serve", "deploy"]:
            assert (ROOT / words[2]).is_file()
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            source = (ROOT / f"{words[2].replace('.', '/')}.py").read_text()
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{words[2]} has no {option}"


def test_python_in_the_pages_imports_what_exists() -> None:
    blocks = [code for page in PAGES for language, code in FENCE.findall(page.read_text()) if language == "python"]
    assert blocks
    for code in blocks:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_every_command_has_a_function_that_the_quickstart_names() -> None:
    rows = re.findall(
        r"^\| (`[a-z-]+`.*) \| (`[a-z]\S+\..+`) \|$", (ROOT / "docs/quickstart.md").read_text(), re.MULTILINE
    )
    assert {command for words, _ in rows for command in re.findall(r"`([a-z-]+)`", words)} == {*COMMANDS, "demo"}
    for _, functions in rows:
        first, *others = re.findall(r"`([\w.]+)`", functions)
        module, _, function = first.rpartition(".")
        for name in (function, *others):
            assert callable(getattr(importlib.import_module(module), name, None)), f"{module} has no {name}"


def test_tests_that_the_guarantees_name_exist() -> None:
    tests = {
        found
        for file in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/guarantees.md").read_text()))
    assert named
    assert named <= tests, f"no such test: {named - tests}"
