"""A run whose folder is on S3 or another remote storage: it works in a folder of this machine, which is sent there.

    URL/checkpoints/step-00000100/ATTEMPT-shard-...     sent in the background; the attempt is that of one start
    URL/checkpoints/step-00000100/manifest.json         created last, and only if no other start has created it
    URL/model/model.json                                the last file of the model
    URL/...                                             metrics and what else lies in the folder, whenever it changes

Files are under names of one attempt, so that a start that takes itself for the only one overwrites nothing. Whatever a
manifest does not name is the rest of a start that was killed, and is removed by the next.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from videolavit.models.model_file import MODEL_FILE
from videolavit.models.network import ModelError
from videolavit.records.addresses import protocol_of, shown
from videolavit.records.storage import Folder, StorageDown, StorageError, StorageSettings, naming_location
from videolavit.scratch import scratch_folder, shared_folder

from .checkpoint import CHECKPOINT_MANIFEST, CHECKPOINTS, CheckpointError
from .lease import LEASE, FolderInUse
from .task import TrainTask

V = TypeVar("V")

PATIENCE = 600.0
"""Longest time that a run waits for a storage that fails, in seconds."""

PAUSES = (1.0, 2.0, 5.0, 10.0)
"""Pauses between two tries, in seconds; the last one repeats."""

SEND_SECONDS = 15.0
"""Time between two looks for files that have changed, and between two signs of life, in seconds."""

LEASE_SECONDS = 4 * SEND_SECONDS
"""Time without a sign of life after which a run is taken for dead, in seconds."""

_ATTEMPT = "attempt"
_CLAIM = ".claim"


class RemoteRun:
    """The folder of a run on a remote storage, and its counterpart on this machine.

    Args:
        url: Address of the run.
        storage: S3 endpoint.
        local: Folder on this machine.
        on_message: Receives messages for people.

    Raises:
        StorageError: the location cannot be used.
    """

    def __init__(
        self, url: str, storage: StorageSettings, local: Path, on_message: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder, self.local = Folder(url, storage), local
        self.url = shown(self.folder.url)
        self._on_message = on_message
        self._sent: dict[str, tuple[int, int]] = {}  # modification time and size of files, as they were sent
        self._sending = threading.Lock()

    # ---- calls to a storage that may fail --------------------------------------------------------------------------

    def patiently(self, call: Callable[[], V]) -> V:
        """Calls until the storage answers. A missing file, and missing credentials, are answers.

        Raises:
            StorageDown: it has failed for `PATIENCE` seconds.
        """
        started, tries = time.monotonic(), 0
        while True:
            try:
                with naming_location(self.folder.url):
                    return call()
            except StorageError as error:
                if time.monotonic() - started > PATIENCE:
                    raise StorageDown(f"{error} (for {PATIENCE / 60:.0f} minutes)") from None
                if not tries:
                    self._on_message(f"waits for the storage: {error}")
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    def claim(self) -> None:
        """Makes sure that the storage can be written to, and creates a file only where none is. Raises StorageError."""
        self.folder.claim(_CLAIM, b"")

    # ---- files of the run ------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Brings the files of the run here, without checkpoints, but with their manifests, and without the model."""
        for name in self.names():
            top, _, rest = name.partition("/")
            if top == CHECKPOINTS:
                wanted = rest.count("/") == 0 or rest.endswith(f"/{CHECKPOINT_MANIFEST}")
            else:
                wanted = top not in ("model", LEASE, _CLAIM)
            if wanted:
                self.bring(name)
                self._sent[name] = _state(self.local / name)

    def send(self) -> None:
        """Sends files that have changed, but those of checkpoints and of the model."""
        with self._sending:
            for path in sorted(self.local.rglob("*")):
                name = path.relative_to(self.local).as_posix()
                places = name.split("/")
                if places[0] in (CHECKPOINTS, "model") or not path.is_file():
                    continue
                if any(place.startswith(".") for place in places):  # unfinished
                    continue
                state = _state(path)
                if self._sent.get(name) != state:
                    self.patiently(lambda path=path, name=name: self._put(path, name))  # type: ignore[misc]
                    self._sent[name] = state

    def send_model(self, model: Path) -> None:
        """Sends a model folder, in place of one that may be there: it is there with its last file, or not at all."""
        self._remove(f"{model.name}/{MODEL_FILE}")
        self._remove(model.name)
        files = [path for path in sorted(model.rglob("*")) if path.is_file() and path != model / MODEL_FILE]
        for path in [*files, model / MODEL_FILE]:
            name = f"{model.name}/{path.relative_to(model).as_posix()}"
            self.patiently(lambda path=path, name=name: self._put(path, name))  # type: ignore[misc]

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Sends what changes during the body, in the background, and the rest at its end."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(SEND_SECONDS):
                with contextlib.suppress(StorageError, OSError):  # the next look sends it
                    self.send()

        thread = threading.Thread(target=work, daemon=True, name="sender")
        thread.start()
        try:
            yield
        except BaseException as error:
            ended.set()
            thread.join()
            if not isinstance(error, StorageDown):  # which has been waited for
                with contextlib.suppress(StorageError, OSError):
                    self.send()
            raise
        ended.set()
        thread.join()
        self.send()

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def send_checkpoint(self, folder: Path, names: list[str], attempt: str) -> None:
        """Sends files of a checkpoint under the names of an attempt."""
        for name in names:
            target = f"{CHECKPOINTS}/{folder.name}/{attempt}-{name}"
            self.patiently(lambda name=name, target=target: self._put(folder / name, target))  # type: ignore[misc]

    def commit(self, name: str, manifest: dict[str, Any], attempt: str) -> None:
        """Creates the manifest of a checkpoint, once everything that the run logged before it is there.

        Raises:
            FolderInUse: another run has created it.
        """
        self.send()
        content = json.dumps(manifest | {_ATTEMPT: attempt}, indent=2).encode()
        target = f"{CHECKPOINTS}/{name}/{CHECKPOINT_MANIFEST}"
        if not self.patiently(lambda: self.folder.create_bytes(target, content)):
            found = self.patiently(lambda: self.folder.read(target)) or b"{}"
            if json.loads(found).get(_ATTEMPT) != attempt:  # the answer to an earlier try may have been lost
                raise FolderInUse(
                    f"another training has written {name} to {self.url}; stop it, or choose another output"
                )

    def note(self, name: str, content: bytes) -> None:
        """Replaces a small file beside the checkpoints."""
        self.patiently(lambda: self.folder.replace(f"{CHECKPOINTS}/{name}", content))

    def bring_checkpoint(self, folder: Path) -> None:
        """Brings the files of a checkpoint whose manifest is here. Files that are gone stay away."""
        try:
            manifest = json.loads((folder / CHECKPOINT_MANIFEST).read_text())
            names, attempt = list(manifest["files"]), manifest[_ATTEMPT]
        except (ValueError, KeyError, TypeError):
            return  # whoever reads it says what is wrong
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.bring(f"{CHECKPOINTS}/{folder.name}/{attempt}-{name}", f"{CHECKPOINTS}/{folder.name}/{name}")

    def files(self, folder: Path) -> "CheckpointFiles":
        """Files of a checkpoint whose manifest is here, to be read in parts."""
        attempt = json.loads((folder / CHECKPOINT_MANIFEST).read_text()).get(_ATTEMPT)
        return CheckpointFiles(self, f"{CHECKPOINTS}/{folder.name}/{attempt}-")

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, the manifest first: a folder without one is no checkpoint."""
        self._remove(f"{CHECKPOINTS}/{name}/{CHECKPOINT_MANIFEST}")
        self._remove(f"{CHECKPOINTS}/{name}")

    def sweep(self) -> None:
        """Removes what starts that were killed have left: files that no manifest names, and parts of uploads."""
        kept: dict[str, str] = {}
        names = [name for name in self.names() if name.startswith(f"{CHECKPOINTS}/step-")]
        for name in names:
            step, _, file = name.removeprefix(f"{CHECKPOINTS}/").partition("/")
            if file == CHECKPOINT_MANIFEST:
                with contextlib.suppress(ValueError, TypeError):
                    manifest = json.loads(self.patiently(lambda name=name: self.folder.read(name)) or b"")  # type: ignore[misc]
                    kept[step] = manifest.get(_ATTEMPT, "")
        for name in names:
            step, _, file = name.removeprefix(f"{CHECKPOINTS}/").partition("/")
            if file != CHECKPOINT_MANIFEST and not (step in kept and file.startswith(f"{kept[step]}-")):
                self._remove(name)
        if self.folder.is_s3:
            self._abort_uploads()

    def _abort_uploads(self) -> None:
        """Ends the uploads in parts of files of the run that were never completed; S3 keeps their parts for ever."""
        bucket, _, prefix = self.folder.path.partition("/")
        call = self.folder.fs.call_s3
        listed = self.patiently(lambda: call("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/"))
        for upload in listed.get("Uploads", []):
            named = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            self.patiently(lambda named=named: call("abort_multipart_upload", **named))  # type: ignore[misc]

    # ---- one run at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Holds the run for this process in the body of the `with` statement, with a sign of life now and then.

        A run of a process that was killed is free at once on its own machine, and after `LEASE_SECONDS` elsewhere.

        Raises:
            FolderInUse: another process, which is alive, holds it.
        """
        own = {"owner": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid()}
        self._wait_for_lease()
        if not self.patiently(lambda: self.folder.create_bytes(LEASE, _lease(own, 0))):
            found = self._lease() or own
            if found["owner"] != own["owner"]:  # the answer to an earlier try may have been lost
                raise self._in_use(found)
        ended = threading.Event()

        def beat() -> None:
            number = 0
            while not ended.wait(SEND_SECONDS):
                number += 1
                with contextlib.suppress(StorageError, OSError):
                    self.folder.replace(LEASE, _lease(own, number))

        thread = threading.Thread(target=beat, daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(StorageError, OSError):
                self.folder.remove(LEASE)

    def _wait_for_lease(self) -> None:
        """Waits until nobody holds the run, and removes the lease of a process that was killed."""
        seen, since = self._lease(), time.monotonic()
        if seen is None:
            return
        if not _is_dead(seen):
            self._on_message(f"waits {LEASE_SECONDS:.0f} s for a sign of life of {_holder(seen)}")
        while not _is_dead(seen) and time.monotonic() - since < LEASE_SECONDS:
            time.sleep(1.0)
            now = self._lease()
            if now is None:
                return
            if now != seen:
                raise self._in_use(now)
        self._remove(LEASE)

    def _lease(self) -> dict[str, Any] | None:
        content = self.patiently(lambda: self.folder.read(LEASE))
        if content is None:
            return None
        found: dict[str, Any] = json.loads(content)
        return found

    def _in_use(self, lease: dict[str, Any]) -> FolderInUse:
        return FolderInUse(
            f"another training writes to {self.url} ({_holder(lease)}); stop it, or choose another output"
        )

    # ---- details ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all files of the run. Always asks the storage."""

        def listed() -> list[str]:
            self.folder.fs.invalidate_cache()
            return [str(path) for path in self.folder.fs.find(self.folder.path)]

        try:
            found = self.patiently(listed)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.removeprefix(f"{self.folder.path}/") for path in found)

    def _remove(self, name: str) -> None:
        def remove() -> None:
            self.folder.fs.invalidate_cache()  # other ranks write there too
            self.folder.remove(name)

        self.patiently(remove)

    def bring(self, name: str, target: str | None = None) -> None:
        """Brings a file to its place here, or to another one. Raises FileNotFoundError."""
        path = self.local / (target or name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.patiently(lambda: self.folder.fs.get_file(self.folder.join(name), str(path)))

    def _put(self, path: Path, name: str) -> None:
        self.folder.fs.put_file(str(path), self.folder.join(name))


class CheckpointFiles:
    """Files of a checkpoint on a remote storage, by their names in its manifest.

    Args:
        run: Run that the checkpoint belongs to.
        prefix: Beginning of the files' names in the run.
    """

    def __init__(self, run: RemoteRun, prefix: str) -> None:
        self._run, self._prefix = run, run.folder.join(prefix)

    def size(self, name: str) -> int:
        return self._run.patiently(lambda: int(self._run.folder.fs.size(self._prefix + name)))

    def read(self, name: str, start: int, end: int) -> bytes:
        path = self._prefix + name
        return self._run.patiently(lambda: bytes(self._run.folder.fs.cat_file(path, start=start, end=end)))


@contextlib.contextmanager
def brought_here(task: TrainTask) -> Iterator[TrainTask]:
    """Task whose model, and checkpoint to begin with, are on this machine's disk during the body.

    Raises:
        ModelError, CheckpointError, StorageError: one of them is not there.
    """
    with contextlib.ExitStack() as stack:
        model, origin, storage = task.model, task.settings.continue_from, task.inputs.storage
        if is_remote(model):
            model = str(stack.enter_context(_fetched_model(model, storage)))
        if origin is not None and is_remote(origin):
            origin = str(stack.enter_context(_fetched_checkpoint(origin, storage)))
        yield replace(task, model=model, settings=replace(task.settings, continue_from=origin))


def is_remote(location: str) -> bool:
    """True for a location that is on no disk."""
    return protocol_of(location) != "file"


@contextlib.contextmanager
def _fetched_model(url: str, storage: StorageSettings) -> Iterator[Path]:
    """Model folder that is brought to this machine. Raises ModelError, StorageError."""

    def bring(folder: Path) -> None:
        run = RemoteRun(url, storage, folder)
        for name in run.names():
            run.bring(name)

    try:
        key = _content(url, MODEL_FILE, storage)
    except FileNotFoundError:
        raise ModelError(f"no model in {shown(url)}: {MODEL_FILE} is missing") from None
    with shared_folder(key, bring) as folder:
        yield folder


@contextlib.contextmanager
def _fetched_checkpoint(url: str, storage: StorageSettings) -> Iterator[Path]:
    """Checkpoint that is brought to this machine. Raises CheckpointError, StorageError."""
    head, _, step = url.rpartition(f"/{CHECKPOINTS}/")

    def bring(folder: Path) -> None:
        run = RemoteRun(head, storage, folder)
        run.bring(f"{CHECKPOINTS}/{step}/{CHECKPOINT_MANIFEST}")
        run.bring_checkpoint(folder / CHECKPOINTS / step)

    try:
        key = _content(url, CHECKPOINT_MANIFEST, storage)
    except FileNotFoundError:
        raise CheckpointError(f"{shown(url)} is no checkpoint: it has no {CHECKPOINT_MANIFEST}") from None
    with shared_folder(key, bring) as folder:
        yield folder / CHECKPOINTS / step


def _content(url: str, name: str, storage: StorageSettings) -> str:
    """Key of what lies at an address, with the content of the file that describes it. Raises FileNotFoundError."""
    with scratch_folder() as folder:
        RemoteRun(url, storage, folder).bring(name)
        return json.dumps([url, storage.s3_endpoint, (folder / name).read_text()])


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _lease(own: dict[str, Any], beat: int) -> bytes:
    return json.dumps(own | {"beat": beat}).encode()


def _holder(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _is_dead(lease: dict[str, Any]) -> bool:
    """True if the process that holds a lease ran on this machine, and has ended."""
    if lease["host"] != socket.gethostname():
        return False
    with contextlib.suppress(PermissionError):
        try:
            os.kill(lease["pid"], 0)
        except ProcessLookupError:
            return True
    return False
