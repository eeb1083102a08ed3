"""Parts that all jobs share: command lines, and errors of the user without a traceback."""

import contextlib
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import pyarrow as pa
from jsonargparse import ArgumentParser, Namespace
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from videolavit.media import MediaError
from videolavit.ray_setup import RayUnavailable
from videolavit.records.files import InputError
from videolavit.records.storage import StorageDown, StorageError, StorageSettings

T = TypeVar("T")
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of control and format characters, halves of surrogate pairs, and separators of lines."""

JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need."""

INTERRUPTED = 130
"""Exit status of a job that was interrupted from the keyboard, as shells define it."""

console = Console(stderr=True, highlight=False)
"""Standard error, for progress and messages to people. Results go to standard output."""


def return_memory() -> None:
    """Lets Arrow take memory from the system's allocator, for the whole process. Its own keeps some for each of the
    threads that read footers: the driver of a run of a million samples took 60 MB more."""
    pa.set_memory_pool(pa.system_memory_pool())


class JobParser(ArgumentParser):
    """Command line with `--config FILE` and `--print-config`, whose options are written with dashes."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"videolavit {name}", description=description)
        self.add_argument("--config", action="config", help="YAML file of options; later options override it")
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # also -1e-3

    def parse(self, args: Sequence[str] | None) -> Any:
        """Parses a command line, by default that of the process; a mistake ends the job with exit status 2."""
        words = sys.argv[1:] if args is None else args
        return self.parse_args([re.sub(r"^--[\w.-]+", _underscored, word) for word in words])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the job with a mistake in its options, in one line."""
        fail(f"{' '.join(_dashed(message).split())}; `{self.prog} --help` lists the options")

    def format_help(self, *args: Any, **named: Any) -> str:
        return _dashed(super().format_help(*args, **named))

    def format_usage(self) -> str:
        return _dashed(super().format_usage())


def _underscored(option: "re.Match[str]") -> str:
    return "--" + option[0][2:].replace("-", "_")


def _dashed(text: str) -> str:
    return re.sub(r"--[\w.]+", lambda match: "--" + match[0][2:].replace("_", "-"), text)


def add_storage_options(parser: JobParser, with_tables: bool = False) -> None:
    """Adds the options of remote storage.

    Args:
        with_tables: Adds `--allow` too, for jobs that read tables.
    """
    parser.add_class_arguments(StorageSettings, skip={"allow"})
    if with_tables:
        parser.add_argument(
            "--allow",
            type=str,
            nargs="+",
            default=[],
            help="beginnings of addresses that rows of manifests may name besides their own folder or bucket and "
            "public web servers, such as /data, s3://bucket or http://host",
        )


def pick(kind: type[T], options: Any) -> T:
    """Takes the settings of one type from a parsed command line.

    Raises:
        ValueError: a value is not allowed; the message is one line.
    """
    try:
        return kind(**{field.name: _as_dict(options[field.name]) for field in fields(kind)})  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError("; ".join(map(_problem, error.errors()))) from None


def _as_dict(value: Any) -> Any:
    """Converts a group of options to a dict, and leaves other values as they are."""
    return value.as_dict() if isinstance(value, Namespace) else value


def _problem(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return ": ".join(filter(None, (".".join(map(str, error["loc"])), message)))


def foreign(value: object, style: str = "", *, lines: bool = False) -> Text:
    """Text from elsewhere, such as names of files and captions, as a terminal may show it: without markup, and with
    escapes in place of control characters and of marks that change the direction of text.

    Args:
        lines: Keeps line breaks.
    """
    kept = JOINERS + "\n" if lines else JOINERS
    shown = (
        one if one in kept or unicodedata.category(one) not in HIDDEN else one.encode("unicode_escape").decode()
        for one in str(value)
    )
    return Text("".join(shown), style)


def fail(message: object, status: int = 2) -> NoReturn:
    """Ends the job with an error message for the user and an exit status, by default that of a mistake."""
    in_one_line = isinstance(message, InputError | StorageError | MediaError)  # others list what differs
    console.print("[red]error:[/]", foreign(message, lines=not in_one_line), soft_wrap=True)
    sys.exit(status)


@contextlib.contextmanager
def user_errors(*types: type[Exception]) -> Iterator[None]:
    """Ends the job, as `fail` does, when the body raises one of these exceptions.

    The status is 1 if there is no Ray, or if a storage fails for the moment.
    """
    try:
        yield
    except (RayUnavailable, StorageDown) as error:
        fail(error, status=1)
    except types as error:
        fail(error)
