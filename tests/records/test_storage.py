"""Exclusive creation, on a local disk and on a real S3 server."""

import threading
from pathlib import Path

import pytest

from tests.conftest import s3_filesystem
from videolavit.media.errors import SourceForbidden, SourceMissing
from videolavit.records.files import find_files
from videolavit.records.storage import Folder, StorageError, StorageSettings, filesystem, open_source

LARGE = 60 << 20
"""Above s3fs's limit for a single request, so that it takes the multipart way."""


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    if request.param == "local":
        return Folder(str(tmp_path / "out"), StorageSettings())
    environment = request.getfixturevalue("s3")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Folder(f"s3://bucket/{request.node.name}", StorageSettings())


def test_the_first_writer_wins(folder: Folder) -> None:
    assert folder.create_bytes("clips/a", b"first")
    assert not folder.create_bytes("clips/a", b"second")
    assert folder.read("clips/a") == b"first"
    assert folder.names("clips", "") == ["a"]


def test_large_files(folder: Folder, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"1" * LARGE)
    assert folder.create("large", file)
    file.write_bytes(b"2" * LARGE)
    assert not folder.create("large", file)
    content = folder.read("large")
    assert content is not None
    assert (len(content), content[:1]) == (LARGE, b"1")


def test_many_writers_at_once(folder: Folder) -> None:
    """Exactly one of eight calls returns that it created the file, and its content is what is there."""
    results: dict[int, bool] = {}
    start = threading.Barrier(8)

    def write(index: int) -> None:
        start.wait()
        results[index] = folder.create_bytes("contended", b"%d" % index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [index for index, created in results.items() if created]
    assert folder.read("contended") == b"%d" % winner


def test_replace_and_absence(folder: Folder) -> None:
    assert folder.read("run.json") is None
    assert folder.names("nothing", ".parquet") == []
    folder.replace("run.json", b"1")
    folder.replace("run.json", b"2")
    assert folder.read("run.json") == b"2"
    assert folder.names("", "") == ["run.json"]  # no temporary file is left


def test_byte_ranges(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open_source(str(tmp_path / "file"), StorageSettings(), 2, 5) as file:
        assert file.read(2) == b"23"
        assert file.seek(-1, 2) == 4
        assert file.read() == b"6"
        assert file.read() == b""
        file.seek(0)
        assert file.read() == b"23456"


def test_missing_and_forbidden_sources(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing), open_source(str(tmp_path / "none"), StorageSettings()):
        pass
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    s3_filesystem(s3).pipe_file("bucket/there", b"1")
    with open_source("s3://bucket/there", StorageSettings()) as file:
        assert file.read() == b"1"
    with open_source("S3://bucket/there", StorageSettings()) as file:  # protocols have no case
        assert file.read() == b"1"
    assert find_files("S3://bucket/there", StorageSettings()).files == [("/there", "s3://bucket/there")]
    with pytest.raises(SourceMissing), open_source("s3://bucket/none", StorageSettings()):
        pass
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    filesystem("s3://bucket", StorageSettings())[0].clear_instance_cache()
    with pytest.raises(SourceForbidden), open_source("s3://bucket/there", StorageSettings()):
        pass
    filesystem("s3://bucket", StorageSettings())[0].clear_instance_cache()


def test_unknown_protocols_are_named() -> None:
    with pytest.raises(StorageError, match="foo"):
        filesystem("foo://bar", StorageSettings())
