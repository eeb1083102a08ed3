"""Rule for the words: docstrings, comments, help texts and API descriptions begin with a noun or a verb."""

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.cli import COMMANDS
from serve.api import make_app
from tests.conftest import ROOT
from videolavit.training.components import COMPONENTS

PACKAGES = ("platform/videolavit", "pipelines", "jobs", "serve", "benchmarks", "examples", "tests")
BEGINNINGS = (
    *("of", "what", "the same", "one of them", "as", "its", "whose"),
    *("how", "where", "whether", "there is", "it", "those"),
)
"""First words that do not say the thing: a reader has to guess it from the name beside them."""

_FORBIDDEN = re.compile(rf"[`'\"(\s]*({'|'.join(BEGINNINGS)})\b", re.IGNORECASE)
_SECTION = re.compile(r"\s*(Args|Attributes|Returns|Yields):\s*(.*)")
_FIELD = re.compile(r"\s*(\*{0,2}\w+(?:, ?\*{0,2}\w+)*):\s(.*)")
_OPTION = re.compile(r"  (-\S.*?)(?:\s{2,}(\S.*))?")


def wrong(text: str) -> bool:
    return bool(_FORBIDDEN.match(text))


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_and_comments_begin_with_a_noun_or_a_verb(package: str) -> None:
    found = []
    for file in sorted((ROOT / package).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        found += [f"{name}:{line}: {text}" for line, text in texts(file.read_text()) if wrong(text)]
    assert not found, f"{len(found)} texts:\n" + "\n".join(found)


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of each docstring's summary and fields, of each comment, and of each `help=` in a call."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            constant = node.value.values[0] if isinstance(node.value, ast.JoinedStr) else node.value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                yield constant.lineno, constant.value
        for statement in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield from fields_of(value.value, value.lineno)
    previous = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            alone = not token.line[: token.start[1]].strip()
            if not alone or line != previous + 1:  # the first line of a comment
                yield line, token.string.lstrip("# ")
            previous = line if alone else -1


def fields_of(docstring: str, line: int) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of a docstring's summary, of its arguments and attributes, and of what it returns."""
    section, indent = "", 0
    lines = docstring.splitlines()
    yield line, lines[0]
    for number, text in enumerate(lines[1:], line + 1):
        if match := _SECTION.fullmatch(text):
            section, indent = match[1], 0
            if match[2]:
                yield number, match[2]
        elif section and text.strip():
            own = len(text) - len(text.lstrip())
            indent = indent or own
            if own < indent:
                section = ""
            elif own == indent and section in ("Args", "Attributes") and (field := _FIELD.fullmatch(text)):
                yield number, field[2]
            elif own == indent and section in ("Returns", "Yields"):
                yield number, text.strip()
                section = ""


COMMAND_LINES = [[name] for name in COMMANDS if name != "train"] + [["train", component] for component in COMPONENTS]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_every_option_has_a_help_text_that_says_what_it_is(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    name, *component = words
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"jobs.{name.replace('-', '_')}").main([*component, "--help"])
    assert not end.value.code
    helps = options_of(capsys.readouterr().out)
    assert len(helps) > 2
    found = [f"{option}: {text}" for option, text in helps.items() if wrong(text) or not text]
    assert not found, "\n".join(found)


def test_every_command_says_what_it_does() -> None:
    purposes = COMMANDS | {name: purpose for name, (_, purpose) in COMPONENTS.items()}
    assert not [f"{name}: {text}" for name, text in purposes.items() if wrong(text) or not text]


def options_of(shown: str) -> dict[str, str]:
    """Option -> help text, without the type and the default that the parser adds."""
    helps: dict[str, str] = {}
    option = ""
    for line in shown.splitlines():
        if match := _OPTION.fullmatch(line):
            option = match[1]
            helps[option] = match[2] or ""
        elif option and line.startswith(" " * 10) and not helps[option]:
            helps[option] = line.strip()
        else:
            option = ""
    return {option: re.sub(r"\s*\((required, )?(type|default|action):? .*", "", text) for option, text in helps.items()}


def test_every_description_of_the_api_says_what_it_is() -> None:
    service: Any = None  # routes use it when they are called
    document = make_app(service).openapi()
    found = [f"{place}: {text}" for place, text in descriptions(document, "") if wrong(text)]
    assert not found, "\n".join(found)
    missing = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, value in schema.get("properties", {}).items()
        if name.endswith("Request") and not list(descriptions(value, field))
    ]
    missing += [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if not operation.get("description")
    ]
    assert not missing, "no description: " + ", ".join(missing)


def descriptions(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yields (place, text) of every description and summary in an OpenAPI document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("description", "summary") and isinstance(inner, str):
                yield place, inner
            yield from descriptions(inner, f"{place}/{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from descriptions(inner, f"{place}/{index}")


def test_the_rule_finds_what_it_forbids() -> None:
    source = '''
"What this is."
# of the module
LIMIT = 1  # as the reader expects
"""Its unit is seconds."""
def call(a, b):
    """Calls.

    Args:
        a: Of a picture.
        b: Width,
            of a picture.

    Returns:
        The same as before.
    """
parser.add_argument("--x", help="whose width")
# Whether it is kept
def keep(): "How it is kept."
'''
    assert sorted(line for line, text in texts(source) if wrong(text)) == [2, 3, 4, 5, 10, 15, 17, 18, 19]
    shown = """options:
  -h, --help    Show it.
  --a A
                of a picture (type: int, default: 1)
  --b B  (type: str)
"""
    assert options_of(shown) == {"-h, --help": "Show it.", "--a A": "of a picture", "--b B": ""}
