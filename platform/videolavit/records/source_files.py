"""Sources that a parent opens for its child process."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from videolavit.media.errors import MediaError
from videolavit.sandbox.call import Arguments, IsolatedFunction, Result
from videolavit.sandbox.errors import CallFailed

from .confinement import OutsideAddress, begins, check_named
from .files import TABLE_SUFFIXES, names_tar, suffix_of
from .rows import Source
from .storage import StorageSettings, open_file


def isolated(
    function: Callable[[*Arguments], Result], settings: StorageSettings
) -> IsolatedFunction[*Arguments, Result]:
    """A function that opens sources, called in a child process."""
    return IsolatedFunction(function, SourceFiles(settings), errors=(MediaError,))


@contextlib.contextmanager
def naming_faults() -> Iterator[None]:
    """Turns faults of a child process, such as its limits, into UndecodableMedia."""
    try:
        yield
    except CallFailed as error:
        raise UndecodableMedia(f"cannot be decoded: {error}") from None


class UndecodableMedia(MediaError):
    """The process that decoded it crashed, hung, or took too much memory."""


class SourceFiles:
    """Sources that are opened for child processes: those that a call is about.

    Args:
        settings: Location of S3.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings

    def may_open(self, address: str, arguments: Sequence[Any]) -> bool:
        """True for the addresses of sources among the arguments, and for arguments that are addresses; for the file of
        one that is `TAR/MEMBER` or `TABLE#rowN`; and for what lies beside or below a table, or is allowed, since rows
        of the table may name it.

        Other texts of a source, such as its caption, are those of strangers.
        """
        return any(
            named == address
            or (names_tar(address) and named.startswith(f"{address}/"))
            or (suffix_of(address) in TABLE_SUFFIXES and named.startswith(f"{address}#"))
            or (suffix_of(named) in TABLE_SUFFIXES and self._may_name(named, address))
            for named in _addresses(arguments)
        )

    def _may_name(self, table: str, address: str) -> bool:
        """True if rows of a table may name an address, which is below the table's folder or allowed."""
        allow = self._settings.allow
        if not _is_below(address, table.rpartition("/")[0]) and not any(begins(address, one) for one in allow):
            return False
        with contextlib.suppress(OutsideAddress):
            check_named(address, table, allow)
            return True
        return False

    def open(self, address: str) -> Any:
        """Opens a source, as `open_file` does."""
        return open_file(address, self._settings)


def _addresses(arguments: Sequence[Any]) -> Iterator[str]:
    for one in arguments:
        if isinstance(one, str):
            yield one
        elif isinstance(one, Source):
            yield one.url
            if one.text_url is not None:
                yield one.text_url


def _is_below(address: str, folder: str) -> bool:
    """True if an address lies in a folder or below it."""
    return bool(folder) and address.startswith(f"{folder}/") and ".." not in address.split("/")
