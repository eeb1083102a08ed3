"""Files on any fsspec location, and the one way this project creates them.

A file under its final name is complete, and is never changed: `create` writes it in one atomic step and only if no file
of that name exists. Of two writers of the same name, the first wins and `create` returns False to the second. Every
guarantee of a pipeline run rests on this.
"""

import contextlib
import functools
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from fsspec.implementations.local import LocalFileSystem

from videolavit.files import publish, publish_new, unused_path
from videolavit.media.errors import MediaError, NotAFile, SourceForbidden, SourceMissing, SourceUnreadable
from videolavit.sandbox import serving
from videolavit.scratch import scratch_folder

from .addresses import is_web, joined, normalised, protocol_of, shown
from .confinement import NotPublic, OutsideAddress, WebTrust, trust_of
from .web import WebFileSystem

WRITER = "writer"
"""Name of the metadata of an object on S3 that tells one attempt to create it from another."""

READ_AHEAD = 4 << 20
"""Bytes fetched at a time from remote storage: a few requests for a header, a few dozen for a video."""


class StorageError(ValueError):
    """A location cannot be used; the message names it and the likely fix."""


class StorageDown(StorageError):
    """A storage answers with a fault of its own. The same call may succeed later."""


@dataclass(frozen=True)
class StorageSettings:
    """Location of S3, beyond what the usual AWS environment variables and files say. Never credentials.

    Args:
        s3_endpoint: URL of an S3-compatible server; None for `AWS_ENDPOINT_URL` or AWS itself.
        allow: Beginnings of addresses that tables may name, besides what lies in their folder or bucket, and public
            web servers.
    """

    s3_endpoint: str | None = None
    allow: Sequence[str] = ()

    def __post_init__(self) -> None:
        # absolute, since workers have other working folders
        object.__setattr__(self, "allow", tuple(map(absolute_url, self.allow)))


@dataclass(frozen=True)
class ConfinedStorage(StorageSettings):
    """Storage for work on inputs whose tables may be those of strangers.

    Args:
        trust: Web servers that may be on a private network.
    """

    trust: WebTrust = field(default_factory=lambda: WebTrust(()))


def confined(storage: StorageSettings, inputs: Sequence[str]) -> ConfinedStorage:
    """Storage for work on inputs: of web servers, private ones must be among those that the user named."""
    return ConfinedStorage(storage.s3_endpoint, storage.allow, trust_of(inputs, storage.allow))


def filesystem(url: str, settings: StorageSettings) -> tuple[Any, str]:
    """Returns the fsspec filesystem of a URL or local path, and the path inside it.

    Raises:
        StorageError: an unknown protocol, one whose package is not installed, or nothing behind the protocol.
    """
    protocol = protocol_of(url)
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        endpoint = settings.s3_endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options = {"endpoint_url": endpoint} if endpoint else {}
        options |= {"default_cache_type": "readahead", "default_block_size": READ_AHEAD}
    try:
        if is_web(url):
            private = settings.trust.servers(url) if isinstance(settings, ConfinedStorage) else None
            fs = WebFileSystem(block_size=READ_AHEAD, private=private)
        elif protocol in ("s3", "s3a"):
            from .s3 import CountedS3  # libraries that take long to load

            fs = CountedS3(**options)
        else:
            fs = fsspec.filesystem(protocol, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(f"cannot use {shown(url)}: {error}") from None
    if protocol == "hf":
        with naming_location(url):
            _check_hub(fs.endpoint)
    path = str(fs._strip_protocol(normalised(url)))
    if not path:
        raise StorageError(f"cannot use {shown(url)}: it names no bucket or folder")
    return fs, path


@functools.lru_cache
def _check_hub(endpoint: str) -> None:
    """Raises OSError if the hub does not answer: its library would wait for minutes, or without end."""
    with contextlib.suppress(PermissionError):
        WebFileSystem(block_size=READ_AHEAD).exists(endpoint)


@contextlib.contextmanager
def naming_location(url: str) -> Iterator[None]:
    """Turns what a storage raises, other than that a file is not there, into a StorageError that names the place."""
    try:
        with _as_os_errors():
            yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except NoCredentialsError:
        raise StorageError(
            f"no credentials for {shown(url)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except PermissionError as error:
        raise StorageError(f"no permission for {shown(url)}: {error}; check the credentials") from None
    except (OSError, BotoCoreError) as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
            raise StorageDown(f"{shown(url)} fails for the moment: {error}; start again later") from None
        raise StorageError(f"cannot use {shown(url)}: {error}") from None


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turns errors that a storage's library defines for itself into OSErrors, in one line."""
    try:
        yield
    except (OSError, BotoCoreError, MediaError, StorageError):
        raise
    except Exception as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def absolute_url(url: str) -> str:
    """Normalises a location: a local path becomes absolute, and the protocol of a URL is in lower case."""
    url = normalised(url)
    return os.path.abspath(url.removeprefix("file://")) if protocol_of(url) == "file" else url


@contextlib.contextmanager
def open_source(url: str, settings: StorageSettings, offset: int = 0, length: int | None = None) -> Iterator[BinaryIO]:
    """Opens a source, or a byte range of one (a member of a tar), as a seekable binary file.

    Raises:
        MediaError: it is missing, forbidden or unreadable, be it now or while it is read.
    """
    with reading(url), open_file(url, settings) as file:
        yield file if length is None else _ByteRange(file, offset, length)  # type: ignore[misc]


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what a storage raises while a source is opened or read into a MediaError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise SourceMissing(f"no such file or key: {shown(url)}") from None
    except NotPublic as error:
        raise OutsideAddress(f"{shown(url)} is {error.strerror}; allow it if you trust it") from None
    except PermissionError:
        raise SourceForbidden(f"no permission to read {shown(url)}") from None
    except (OSError, BotoCoreError, StorageError) as error:
        raise SourceUnreadable(f"cannot read {shown(url)}: {error}") from None


def open_file(url: str, settings: StorageSettings) -> Any:
    """Opens a source. Raises NotAFile; a storage raises OSErrors, then and while the file is read.

    A child process has its parent open it.
    """
    if serving.parent is not None:
        return serving.parent.open(url)
    if protocol_of(url) == "file":
        file = Path(absolute_url(url))
        if file.exists() and not file.is_file():  # opening a pipe would wait for a writer
            raise NotAFile(f"a folder, a pipe, a socket or a device: {url}")
        return file.open("rb", buffering=0)
    fs, path = filesystem(url, settings)
    with _as_os_errors():
        return _RemoteFile(fs.open(path, "rb"))


class _RemoteFile(io.RawIOBase):
    """A file of a remote storage, whose errors while it is read are OSErrors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        with _as_os_errors():
            return self._file.read(size)  # type: ignore[no-any-return]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)  # type: ignore[no-any-return]

    def tell(self) -> int:
        return self._file.tell()  # type: ignore[no-any-return]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


class _ByteRange:
    """A window of a seekable file, itself a seekable file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._position = file, offset, length, 0

    def read(self, size: int = -1) -> bytes:
        left = self._length - self._position
        size = left if size < 0 else min(size, left)
        if size <= 0:
            return b""
        self._file.seek(self._offset + self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


class Folder:
    """An output folder on any filesystem.

    Args:
        url: Local path or fsspec URL.
        settings: Location of S3.

    Raises:
        StorageError: the location cannot be used.
    """

    def __init__(self, url: str, settings: StorageSettings) -> None:
        self.url = absolute_url(url)
        self.settings = settings
        self.fs, self.path = filesystem(self.url, settings)
        self.path = self.path.rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.is_s3 = protocol_of(self.url) in ("s3", "s3a")

    def join(self, name: str) -> str:
        return joined(self.path, name)

    def names(self, prefix: str, suffix: str) -> list[str]:
        """Names of the files in a sub-folder, sorted; empty where there is no such folder. Always asks the storage."""
        self.fs.invalidate_cache()
        try:
            with naming_location(self.url):
                found = self.fs.ls(self.join(prefix), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for name in (str(path).rsplit("/", 1)[-1] for path in found) if name.endswith(suffix))

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""
        try:
            with naming_location(self.url):
                return self.fs.cat_file(self.join(name))  # type: ignore[no-any-return]
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name: str) -> Any:
        return self.fs.open(self.join(name), "rb")

    def create(self, name: str, local_file: Path) -> bool:
        """Publishes a finished local file under `name` in one step, unless the name is taken.

        Order: the bytes are complete on the target's disk under a temporary name, then the final name is linked to
        them. A crash before the link leaves no file of that name; a crash after it leaves a complete one.

        Returns:
            False if the name was already taken; that file is left as it is.
        """
        target = self.join(name)
        if self.is_local:
            with local_file.open("rb") as source, _complete_copy(Path(target), source) as copy:
                return publish_new(copy, Path(target))
        writer = secrets.token_hex(8)
        marked = {"Metadata": {WRITER: writer}} if self.is_s3 else {}
        try:
            self.fs.put_file(str(local_file), target, mode="create", **marked)
        except OSError:
            # Servers word a failed precondition differently. If the name is taken now, that was it; and perhaps by this
            # very file, if the answer to the first try was lost on its way.
            self.fs.invalidate_cache()
            if self.fs.exists(target):
                return bool(self.is_s3 and self.fs.metadata(target, refresh=True).get(WRITER) == writer)
            raise
        return True

    def create_bytes(self, name: str, data: bytes) -> bool:
        """`create` for small content that is in memory."""
        with scratch_folder() as scratch:
            file = scratch / "data"
            try:
                with naming_location(self.url):
                    file.write_bytes(data)
                    return self.create(name, file)
            except FileNotFoundError as error:
                raise StorageError(f"cannot write to {shown(self.url)}: {error}; does the bucket exist?") from None

    def claim(self, name: str, data: bytes) -> None:
        """Creates a file unless it exists, and makes sure that this storage honours the "unless".

        Raises:
            StorageError: it does not, so that two writers could overwrite each other.
        """
        try:
            if self.create_bytes(name, data) and self.create_bytes(name, data):
                raise StorageError(
                    f"{shown(self.url)} cannot create a file only where none exists; use a disk or S3 that can"
                )
        except OSError as error:
            raise StorageError(f"cannot write to {shown(self.url)}: {error}") from None

    def remove(self, name: str) -> None:
        """Deletes a file, or a sub-folder with all that is in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.join(name), recursive=True)

    def replace(self, name: str, data: bytes) -> None:
        """Writes a derived file (a summary, a report) in one step over what may be there."""
        if self.is_local:
            self._replace_local(name, io.BytesIO(data))
        else:
            self.fs.pipe_file(self.join(name), data)

    def replace_with(self, name: str, local_file: Path) -> None:
        """`replace` with the content of a finished local file."""
        if self.is_local:
            with local_file.open("rb") as source:
                self._replace_local(name, source)
        else:
            self.fs.put_file(str(local_file), self.join(name))

    def _replace_local(self, name: str, source: BinaryIO) -> None:
        with _complete_copy(Path(self.join(name)), source) as copy:
            publish(copy, Path(self.join(name)))


@contextlib.contextmanager
def _complete_copy(target: Path, source: BinaryIO) -> Iterator[Path]:
    """Yields a copy of a file under an unused path on the target's disk."""
    with unused_path(target) as copy:
        with copy.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        yield copy
