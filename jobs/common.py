"""What all jobs share: command lines, user errors without a traceback, and Ray as it should be here."""

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from pipelines.session import RayUnavailable, ray_session

T = TypeVar("T")
INTERRUPTED = 130

console = Console(stderr=True, highlight=False)
"""For people: progress and messages. Standard output is for results."""


class JobParser(ArgumentParser):
    """A command line with `--config FILE` and `--print-config`; options are written with dashes."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"videolavit {name}", description=description)
        self.add_argument("--config", action="config", help="YAML file of options; later options override it")

    def parse(self, args: Sequence[str] | None) -> Any:
        """Parses a command line; a mistake ends the job with exit status 2."""
        words = sys.argv[1:] if args is None else args
        return self.parse_args([re.sub(r"^--[\w.-]+", _underscored, word) for word in words])

    def format_help(self, *args: Any, **named: Any) -> str:
        return _dashed(super().format_help(*args, **named))

    def format_usage(self) -> str:
        return _dashed(super().format_usage())


def _underscored(option: "re.Match[str]") -> str:
    return "--" + option[0][2:].replace("-", "_")


def _dashed(text: str) -> str:
    return re.sub(r"--[\w.]+", lambda match: "--" + match[0][2:].replace("_", "-"), text)


def pick(kind: type[T], options: Any) -> T:
    """The settings of a type out of a parsed command line. Raises ValueError, in a line, for a value that cannot be."""
    try:
        return kind(**{field.name: _plain(options[field.name]) for field in fields(kind)})  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError("; ".join(map(_problem, error.errors()))) from None


def _plain(value: Any) -> Any:
    """A group of options as plain values."""
    return value.as_dict() if isinstance(value, Namespace) else value


def _problem(found: Mapping[str, Any]) -> str:
    said = str(found["msg"]).removeprefix("Value error, ")
    return ": ".join(filter(None, (".".join(map(str, found["loc"])), said)))


def fail(message: object) -> NoReturn:
    """Ends the job as a user's mistake: the message, and exit status 2."""
    console.print(f"[red]error:[/] {escape(str(message))}", soft_wrap=True)
    sys.exit(2)


@contextlib.contextmanager
def user_errors(*types: type[Exception]) -> Iterator[None]:
    """Turns these exceptions into `fail`."""
    try:
        yield
    except types as error:
        fail(error)


@contextlib.contextmanager
def ray_runtime() -> Iterator[None]:
    """`ray_session` for a command: shows that Ray starts, and ends the command where it is missing or interrupted."""
    with contextlib.ExitStack() as stack:
        with console.status("starting Ray"), user_errors(RayUnavailable):
            stack.enter_context(ray_session())
        try:
            yield
        except KeyboardInterrupt:
            console.print("interrupted; the same command continues where it stopped")
            sys.exit(INTERRUPTED)
