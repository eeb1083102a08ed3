"""S3 that fails in the middle: 500, 503, resets, cut and slow answers, lost answers, 403."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.common import user_errors
from tests.faulty_proxy import FaultyProxy, cut, lost, slow, status
from videolavit.media.errors import MediaError, SourceForbidden
from videolavit.records.storage import Folder, StorageDown, StorageSettings, filesystem, open_source

INTERNAL, BUSY = status(500, "InternalError"), status(503, "SlowDown")


@pytest.fixture(scope="module")
def proxy(s3: dict[str, str]) -> Iterator[FaultyProxy]:
    made = FaultyProxy(s3["AWS_ENDPOINT_URL"])
    yield made
    made.close()


@pytest.fixture
def folder(
    proxy: FaultyProxy, s3: dict[str, str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    for name, value in (s3 | {"AWS_ENDPOINT_URL": proxy.url}).items():
        monkeypatch.setenv(name, value)
    proxy.choose = lambda method, path: None
    name = "".join(one if one.isalnum() else "-" for one in request.node.name)
    return Folder(f"s3://bucket/{name}", StorageSettings())


def test_a_lost_answer_to_a_creation_is_one_s_own(folder: Folder, proxy: FaultyProxy) -> None:
    """The first try has created the file; the second is told that the name is taken."""
    proxy.fail_next(lost, 1, "PUT", "own")
    assert folder.create_bytes("own", b"ours")
    assert [method for method, path in proxy.asked if path.endswith("own")].count("PUT") == 2
    assert folder.read("own") == b"ours"
    assert not folder.create_bytes("own", b"ours")  # bytes that are equal, of another writer
    proxy.fail_next(lost, 1, "PUT", "own")
    assert not folder.create_bytes("own", b"theirs")
    assert folder.read("own") == b"ours"


@pytest.mark.parametrize("fault", [INTERNAL, BUSY, lost, slow], ids=["500", "503", "lost", "slow"])
def test_short_faults_are_tried_again(folder: Folder, proxy: FaultyProxy, fault: object) -> None:
    proxy.fail_next(fault, 1, "PUT")  # type: ignore[arg-type]
    assert folder.create_bytes("file", b"x" * 1000)
    for method in ("GET", "HEAD"):
        proxy.fail_next(fault, 1, method)  # type: ignore[arg-type]
        with open_source(f"{folder.url}/file", StorageSettings()) as file:
            assert file.read() == b"x" * 1000


def test_a_cut_answer_is_not_taken_for_a_whole_one(folder: Folder, proxy: FaultyProxy) -> None:
    folder.create_bytes("file", b"x" * 100_000)
    proxy.fail_next(cut, 1, "GET", "file")
    with open_source(f"{folder.url}/file", StorageSettings()) as file:
        assert file.read() == b"x" * 100_000
    proxy.fail_next(cut, 100, "GET", "file")
    with pytest.raises(MediaError), open_source(f"{folder.url}/file", StorageSettings()) as file:
        file.read()


def test_permission_that_goes_away_is_named(folder: Folder, proxy: FaultyProxy) -> None:
    folder.create_bytes("file", b"x" * 1000)
    filesystem(folder.url, StorageSettings())[0].invalidate_cache()
    proxy.fail_next(status(403, "AccessDenied"), 100)
    with pytest.raises(SourceForbidden), open_source(f"{folder.url}/file", StorageSettings()) as file:
        file.read()


def test_a_storage_that_is_down_is_no_mistake_in_the_command(
    folder: Folder, proxy: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fail_next(INTERNAL, 1000)
    with pytest.raises(SystemExit) as end, user_errors(ValueError):
        folder.names("clips", "")
    assert end.value.code == 1
    assert "fails for the moment" in capsys.readouterr().err
    with pytest.raises(StorageDown):
        folder.read("run.json")


def test_two_writers_through_a_bad_network(folder: Folder, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Whatever gets lost, one of them has created each file."""
    faults = iter([lost, None, BUSY, lost, None, None, lost] * 100)
    proxy.choose = lambda method, path: next(faults) if method == "PUT" else None
    for number in range(6):
        won = [folder.create_bytes(f"shard-{number}", content) for content in (b"one", b"two")]
        assert sorted(won) == [False, True]
        assert folder.read(f"shard-{number}") == (b"one" if won[0] else b"two")
