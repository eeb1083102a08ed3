"""Faults of the environment, told from those of samples: a storage is believed only when it answers.

A file that is gone, or that one may not read, is a fault of its sample if another one of its place can be read at that
moment. If none can, the credentials, the network or the storage are at fault: no sample is rejected for it.
"""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from videolavit.media.errors import MediaError, SourceForbidden, SourceMissing, SourceUnreadable
from videolavit.progress import OnProgress, Progress
from videolavit.records.addresses import protocol_of, shown
from videolavit.records.rows import PlanRow
from videolavit.records.storage import Folder, StorageError, StorageSettings, open_source

SUSPICIOUS = {kind.__name__ for kind in (SourceForbidden, SourceMissing, SourceUnreadable)}
"""Names of errors that a storage gives for a file, and that may be its own."""

STOP_AFTER = 3
"""Shards in a row that a storage fails before a run looks at it, looks in vain before the run stops, and files in a row
that an actor cannot read, with no other to ask for, before it takes the storage to fail."""

OTHERS_ASKED = 8
"""Files of a shard that are asked for where the storage has given none yet."""

STORAGE_WAIT, LOOK_EVERY = 600.0, 10.0
"""Longest time that a run waits for a storage, and the time between two looks at it, in seconds."""

_MARK = "the storage fails: "
_OUTPUT_MARK = "the output cannot be written: "


class StorageFails(Exception):
    """A storage does not give its files, or not any more. The shard stays pending.

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
    """Last files that an actor could read, by which it judges a storage.

    Args:
        believe: True to take every answer of a storage for a fault of the sample.
    """

    def __init__(self, storage: StorageSettings, believe: bool) -> None:
        self._storage, self._believe = storage, believe
        self._good: dict[str, str] = {}
        self._doubtful: set[str] = set()

    def read(self, row: PlanRow) -> None:
        """Notes that a source could be read."""
        self._note(row.url)

    def check(self, row: PlanRow, error_type: str, rows: Sequence[PlanRow]) -> None:
        """Raises StorageFails if a fault is rather one of the storage than of the sample.

        Args:
            row: Sample that failed.
            error_type: Name of its error.
            rows: Rows of its shard.
        """
        if self._believe or error_type not in SUSPICIOUS:
            return
        witness = row.url if _is_listed(row) else self._witness(row, rows)  # a list was read when it was planned
        if witness is not None:
            reason = failure_of(witness, self._storage)
            if reason is not None:
                raise StorageFails(witness, reason)
        elif row.planned_seconds is not None:
            self._ask_others(row, rows)

    def _witness(self, row: PlanRow, rows: Sequence[PlanRow]) -> str | None:
        """Another file of the place that could be read, here or when it was planned."""
        place = _place(row.url)
        good = self._good.get(place)
        if good not in (None, row.url):
            return good
        planned = (one.url for one in rows if one.planned_seconds and one.url != row.url and _place(one.url) == place)
        return next(planned, None)

    def _ask_others(self, row: PlanRow, rows: Sequence[PlanRow]) -> None:
        """Raises StorageFails if no other file can be read either; on the web, of any server."""
        wide = _wide_place(row.url)
        found = [self._good.get(wide)]
        found += [one.url for one in rows if one.planned_seconds is not None and _wide_place(one.url) == wide]
        others = [url for url in dict.fromkeys(found) if url not in (None, row.url)]
        failure = None
        for url in others[:: max(1, len(others) // OTHERS_ASKED)][:OTHERS_ASKED]:
            reason = failure_of(url, self._storage)
            if reason is None:
                self._note(url)
                return
            failure = StorageFails(url, reason)
        self._doubtful.add(row.url)
        if failure is None and len(self._doubtful) >= STOP_AFTER:
            failure = StorageFails(row.url, "like the files before it, it cannot be read")
        if failure is not None:
            raise failure

    def _note(self, url: str) -> None:
        self._good[_place(url)] = self._good[_wide_place(url)] = url
        self._doubtful.clear()


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
        f"the storage fails: {reason}. No sample was rejected for it; mend the storage or the credentials and start "
        "again. If the files are gone for good, set believe_storage"
    )


def _is_listed(row: PlanRow) -> bool:
    """True if a sample is a member of an archive, or a row of a table."""
    return row.offset is not None or row.row is not None


def _wide_place(url: str) -> str:
    """Storage of an address; for the web, all of it."""
    return "web" if protocol_of(url) in ("http", "https") else _place(url)


def _place(url: str) -> str:
    """Storage of an address: its protocol, and its bucket or server."""
    protocol = protocol_of(url)
    return protocol if protocol == "file" else "/".join(url.split("/", 3)[:3])
