"""Faults of the environment, told from those of samples: a storage is believed only when it answers.

A file that is gone, or that one may not read any more, is a fault of its sample if others of its place can be read at
that moment. If they cannot, the credentials, the network or the storage are at fault: no sample is rejected for it.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from videolavit.media.errors import MediaError, SourceForbidden, SourceMissing, SourceUnreadable
from videolavit.progress import OnProgress, Progress
from videolavit.records.addresses import protocol_of, shown
from videolavit.records.rows import PlanRow
from videolavit.records.storage import Folder, StorageError, StorageSettings, open_source

SUSPICIOUS = {kind.__name__ for kind in (SourceForbidden, SourceMissing, SourceUnreadable)}
"""Names of errors that a storage gives for a file, and that may be its own."""

STOP_AFTER = 3
"""Shards in a row that a storage fails before a run looks at it, and looks in vain before the run stops."""

STORAGE_WAIT, LOOK_EVERY = 600.0, 10.0
"""Longest time that a run waits for a storage, and the time between two looks at it, in seconds."""

_MARK = "the storage fails: "
_OUTPUT_MARK = "the output cannot be written: "


class StorageFails(Exception):
    """A storage that gave the headers of files does not give them any more. The shard stays pending.

    Args:
        url: File that could not be read.
        reason: Error of the storage.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{_MARK}{url}: {reason}")


class OutputFails(Exception):
    """The output cannot be written on a node. The shard stays pending.

    Args:
        node: Address of the node.
        reason: Error of the storage.
    """

    def __init__(self, node: str, reason: object) -> None:
        super().__init__(f"{_OUTPUT_MARK}{reason} (on {node})")


@dataclass(frozen=True)
class FailingStorage:
    """Storage that does not give a file.

    Args:
        url: Address of the file.
        reason: Error of the storage.
    """

    url: str
    reason: str


class StorageStopped(RuntimeError):
    """A run stopped since its storage failed for long. Another start continues."""


class FaultWitness:
    """Last file that an actor could read, by which it judges a storage.

    Args:
        believe: True to take every answer of a storage for a fault of the sample.
    """

    def __init__(self, storage: StorageSettings, believe: bool) -> None:
        self._storage, self._believe = storage, believe
        self._good: dict[str, str] = {}

    def read(self, row: PlanRow) -> None:
        """Notes that a source could be read."""
        self._good[_place(row.url)] = row.url

    def check(self, row: PlanRow, error_type: str, others: Iterable[PlanRow]) -> None:
        """Raises StorageFails if a fault is rather one of the storage than of the sample.

        Args:
            row: Sample that failed.
            error_type: Name of its error.
            others: Rows of the same shard.
        """
        if self._believe or error_type not in SUSPICIOUS:
            return
        place = _place(row.url)
        planned = (one.url for one in others if one.planned_seconds and one.url != row.url and _place(one.url) == place)
        witness = self._good.get(place) or next(planned, None)
        if witness is None or witness == row.url:
            return
        reason = failure_of(witness, self._storage)
        if reason is not None:
            raise StorageFails(witness, reason)


def failure_of(url: str, storage: StorageSettings) -> str | None:
    """Reason why a file cannot be read now; None if it can."""
    try:
        with open_source(url, storage) as file:
            file.read(1)
    except (MediaError, StorageError) as error:
        return str(error)
    return None


def failing_storage(error: str) -> FailingStorage | None:
    """Storage that made a shard fail, from the message of the shard's error."""
    _, mark, rest = error.partition(_MARK)
    url, _, reason = rest.partition(": ")
    return FailingStorage(url, reason) if mark else None


def check_output(folder: Folder, mark: str, node: str) -> None:
    """Raises OutputFails if this process cannot write to the output, or sees another folder than the driver.

    Args:
        mark: Name of a file that the driver has written.
        node: Address of this node.
    """
    probe = f".writable-{uuid.uuid4().hex}"
    with output_faults(node):
        if folder.read(mark) is None:
            raise OutputFails(node, f"{shown(folder.url)} is another folder here than for the driver")
        folder.create_bytes(probe, b"")
        folder.remove(probe)


@contextlib.contextmanager
def output_faults(node: str) -> Iterator[None]:
    """Turns the errors of a storage that is written to into OutputFails."""
    try:
        yield
    except (StorageError, OSError) as error:
        raise OutputFails(node, error) from error


def failing_output(error: str) -> str | None:
    """Reason why an output could not be written, from the message of a shard's error."""
    _, mark, reason = error.partition(_OUTPUT_MARK)
    return f"{mark}{reason}" if mark else None


def wait_for_storage(
    failing: FailingStorage,
    storage: StorageSettings,
    on_progress: OnProgress,
    *,
    limit: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Waits until a storage gives a file again, and says so.

    Args:
        limit: Longest time to wait, in seconds; None for `STORAGE_WAIT`.

    Raises:
        StorageStopped: it does not in time.
    """
    limit = STORAGE_WAIT if limit is None else limit
    started, reason = time.monotonic(), failing.reason
    while (waited := time.monotonic() - started) < limit:
        message = f"waiting for the storage, {waited:.0f} of at most {limit:.0f} s: {reason}"
        on_progress(Progress("storage", message=message))
        sleep(LOOK_EVERY)
        found = failure_of(failing.url, storage)
        if found is None:
            on_progress(Progress("storage", message=f"{shown(failing.url)} can be read again"))
            return
        reason = found
    raise StorageStopped(
        f"the storage fails: {reason}. It gave this file when it was planned. No sample was rejected for it; mend the "
        "storage or the credentials and start again. If the files are gone for good, set believe_storage"
    )


def _place(url: str) -> str:
    """Storage of an address: its protocol, and its bucket or server."""
    protocol = protocol_of(url)
    return protocol if protocol == "file" else "/".join(url.split("/", 3)[:3])
