"""Job store: leases, attempts and limits, on SQLite and PostgreSQL."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from serve.settings import read_settings
from serve.storage import check_sqlite, private_storage
from serve.store import HOLDERS, JOBS, TAKEOVERS, Idempotency, Job, JobStore, new_id
from serve.video_jobs import JobWorker
from videolavit.records.storage import Folder, StorageSettings

EXPIRED = -1.0
"""Length of a lease that has expired when it begins, in seconds."""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """URL of a real server, whose user may not read pytest's own folders."""
    pgserver = pytest.importorskip("pgserver", reason="has no wheel for this Python")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/sbin", prepend=os.pathsep)  # started by root, pgserver makes a user
        server = pgserver.get_server(Path(folder) / "data")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    on_disk = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    opened = JobStore(on_disk if request.param == "sqlite" else request.getfixturevalue("postgresql"))
    with opened.engine.begin() as connection:  # the clock stays: the store has read it
        for table in (JOBS, HOLDERS, TAKEOVERS):
            connection.execute(table.delete())
    yield opened
    opened.engine.dispose()


def _add(store: JobStore, owner: str = "a", max_open: int = 100, max_own: int = 100) -> str | None:
    job = store.add(owner, "generate", {"prompt": "x"}, max_open, max_own, new_id())
    return None if job is None else job.id


def test_a_job_is_claimed_once_and_the_oldest_first(store: JobStore) -> None:
    added = [_add(store) for _ in range(20)]
    claimed: list[str] = []

    def claim(holder: str) -> None:
        store.beat(holder, 60)
        while (job := store.claim(holder, leases)) is not None:
            leases.append(str(job.lease))
            claimed.append(job.id)

    leases: list[str] = []
    threads = [threading.Thread(target=claim, args=(f"holder {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(name for name in added if name)
    first = _add(store)
    _add(store)
    job = store.claim("holder 0", leases)
    assert job is not None
    assert job.id == first


def test_only_the_holder_of_the_lease_ends_a_job(store: JobStore) -> None:
    _add(store)
    store.beat("first", 60)
    store.beat("second", 60)
    first = store.claim("first")
    assert first is not None
    assert store.claim("second") is None
    store.beat("first", EXPIRED)
    second = store.claim("second")
    assert second is not None
    assert (second.id, second.attempts) == (first.id, 2)
    assert not store.set_progress(first, 50)
    assert not store.complete(first, "first's", {}, 60)
    assert not store.fail(first, "x", "y", 60)
    assert store.complete(second, "second's", {"visual": 3}, 60)
    done = store.get("a", second.id)
    assert done is not None
    assert (done.status, done.result, done.progress) == ("completed", "second's", 100)
    assert not store.complete(second, "again", {}, 60)


def test_a_late_heartbeat_is_no_attempt(store: JobStore) -> None:
    """Nobody claimed the job meanwhile: it is held as before. Somebody did: what that counted is given back, once."""
    added = _add(store)
    assert added is not None
    store.beat("late", 60)
    store.beat("other", 60)
    late = store.claim("late")
    assert late is not None
    store.beat("late", EXPIRED)
    store.beat("late", 60)
    assert store.claim("other") is None
    assert store.set_progress(late, 50)
    store.beat("late", EXPIRED)
    other = store.claim("other")
    assert other is not None
    assert other.attempts == 2
    for _ in range(2):
        store.beat("late", 60)
        assert _attempts(store, added) == 1
    assert not store.set_progress(late, 60)
    assert store.set_progress(other, 10)


def test_ends_of_processes_are_attempts_however_many_heartbeats_were_late(store: JobStore) -> None:
    added = _add(store)
    assert added is not None
    for holder in ("late", "dead", "left", "last"):
        store.beat(holder, 60)
        assert store.claim(holder) is not None
        store.beat(holder, EXPIRED)
    assert _attempts(store, added) == 4
    store.beat("late", 60)
    store.leave("left")
    assert _attempts(store, added) == 2  # attempts of `dead` and of `last`
    store.remove_expired()
    assert _attempts(store, added) == 2


def test_nobody_claims_without_a_heartbeat(store: JobStore) -> None:
    _add(store)
    assert store.claim("unknown") is None
    store.beat("late", EXPIRED)
    assert store.claim("late") is None
    store.beat("late", 60)
    assert store.claim("late") is not None


def test_a_job_that_its_holder_forgot_is_claimed_again(store: JobStore) -> None:
    """An error at its end left the job in progress, while the process lives on."""
    _add(store)
    store.beat("a", 60)
    job = store.claim("a")
    assert job is not None
    assert store.claim("a", [str(job.lease)]) is None
    again = store.claim("a", [])
    assert again is not None
    assert (again.id, again.attempts) == (job.id, 2)
    assert not store.set_progress(job, 50)


def test_a_delayed_retry_counts_as_an_attempt(store: JobStore) -> None:
    _add(store)
    store.beat("a", 60)
    job = store.claim("a")
    assert job is not None
    assert store.retry_later(job, 2)
    assert not store.set_progress(job, 50)
    assert store.claim("a") is None
    time.sleep(2.1)
    again = store.claim("a")
    assert again is not None
    assert again.attempts == 2


def test_a_released_job_counts_no_attempt(store: JobStore) -> None:
    _add(store)
    store.beat("a", 60)
    for _ in range(5):
        job = store.claim("a")
        assert job is not None
        assert job.attempts == 1
        assert store.release(job)


def test_a_deleted_job_cannot_be_ended(store: JobStore) -> None:
    added = _add(store)
    assert added is not None
    store.beat("a", 60)
    job = store.claim("a")
    assert job is not None
    assert store.remove("b", added) is None
    assert store.remove("a", added) is not None
    assert not store.complete(job, "r", {}, 60)
    assert store.get("a", added) is None


def test_jobs_are_limited_and_expire(store: JobStore) -> None:
    assert _add(store, "a", 3, 2)
    assert _add(store, "a", 3, 2)
    assert _add(store, "a", 3, 2) is None
    assert _add(store, "b", 3, 2)
    assert _add(store, "b", 3, 2) is None
    store.beat("a", 60)
    job = store.claim("a")
    assert job is not None
    store.complete(job, "r", {}, keep_seconds=-2)
    assert store.remove_expired() == [job.id]
    assert store.counts() == {"queued": 2}


def test_an_idempotency_key_has_one_job_as_long_as_that_is_stored(store: JobStore) -> None:
    same, other = Idempotency("key", "content"), Idempotency("key", "other content")

    def add(idempotency: Idempotency, owner: str = "a", max_open: int = 1) -> Job | None:
        return store.add(owner, "generate", {"prompt": "x"}, max_open, 9, new_id(), idempotency)

    first = add(same)
    assert first is not None
    assert first.request_digest == "content"
    for again in (add(same), add(other)):  # a full queue refuses neither
        assert again is not None
        assert (again.id, again.request_digest) == (first.id, "content")
    assert add(Idempotency("another", "content")) is None
    assert store.find("b", same) is None
    assert add(same, owner="b", max_open=2) is not None
    store.remove("a", first.id)
    assert store.find("a", same) is None
    second = add(other, max_open=2)
    assert second is not None
    assert (second.id == first.id, second.request_digest) == (False, "other content")


def test_an_idempotency_key_has_one_job_at_the_same_moment_in_two_processes(store: JobStore) -> None:
    stores = [store, JobStore(store.url)]

    def add(number: int) -> str:
        found = stores[number % 2].add("a", "generate", {"prompt": "x"}, 9, 9, new_id(), Idempotency("key", "content"))
        assert found is not None
        return found.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(add, range(24)))) == 1
    assert store.counts() == {"queued": 1}
    stores[1].engine.dispose()


EARLIER_TABLE = """CREATE TABLE video_jobs (
    id VARCHAR(64) NOT NULL PRIMARY KEY, owner VARCHAR(200) NOT NULL, kind VARCHAR(20) NOT NULL,
    status VARCHAR(20) NOT NULL, progress INTEGER NOT NULL, "order" BIGINT NOT NULL, created_at INTEGER NOT NULL,
    completed_at INTEGER, expires_at INTEGER, request JSON NOT NULL, error_code VARCHAR(60), error_message TEXT,
    tokens JSON, lease VARCHAR(64), lease_until FLOAT, attempts INTEGER NOT NULL, result VARCHAR(200))"""
"""Layout of version 0.1."""


def test_a_database_of_an_earlier_version_goes_on(store: JobStore) -> None:
    """Leases of version 0.1, which have a time and no holder, are respected: its processes may still run."""
    row = "INSERT INTO video_jobs VALUES "
    row += "('{}', 'a', 'generate', '{}', 0, {}, 0, NULL, NULL, '{{}}', NULL, NULL, NULL, {})"
    with store.engine.begin() as connection:
        for table in ("video_jobs", "video_job_holders", "video_job_takeovers"):
            connection.execute(text(f"DROP TABLE {table}"))
        connection.execute(text(EARLIER_TABLE))
        connection.execute(text(row.format("held", "in_progress", 1, f"'x', {time.time() + 60}, 1, NULL")))
        connection.execute(text(row.format("expired", "in_progress", 2, f"'y', {time.time() - 1}, 1, NULL")))
        connection.execute(text(row.format("queued", "queued", 3, "NULL, NULL, 0, NULL")))
    with ThreadPoolExecutor(4) as pool:  # started together
        stores = list(pool.map(lambda _: JobStore(store.url), range(4)))
    stores[0].beat("new", 60)
    leases: list[str] = []
    for name, attempts in (("expired", 2), ("queued", 1)):
        job = stores[0].claim("new", leases)
        assert job is not None
        assert (job.id, job.attempts) == (name, attempts)
        leases.append(str(job.lease))
    assert stores[1].claim("new", leases) is None
    with store.engine.begin() as connection:  # jobs that the earlier version takes for free
        free = "SELECT count(*) FROM video_jobs WHERE status = 'queued' OR lease_until < 9e9"
        assert connection.scalar(text(free + " AND id != 'held'")) == 0
    keyed = [one.add("a", "generate", {}, 9, 9, new_id(), Idempotency("key", "x")) for one in stores]
    assert len({job.id for job in keyed if job is not None}) == 1
    for each in stores:
        each.engine.dispose()


def _attempts(store: JobStore, job_id: str) -> int:
    job = store.get("a", job_id)
    assert job is not None
    return job.attempts


def test_calls_at_the_same_moment_do_not_pass_the_limit(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda n: _add(store, owner=f"owner {n % 2}", max_open=5, max_own=3), range(40)))
    assert len([job_id for job_id in added if job_id is not None]) == 5
    assert store.counts() == {"queued": 5}


def test_files_of_deleted_jobs_are_removed(store: JobStore, tmp_path: Path) -> None:
    settings = read_settings({"storage": str(tmp_path), "limits": {"request_seconds": 0.05}})
    folder = Folder(settings.storage, StorageSettings())
    kept, deleted = _add(store), new_id()
    for job in (kept, deleted):
        folder.create_bytes(f"results/{job}/lease/video.mp4", b"x")
        folder.create_bytes(f"uploads/{job}.bin", b"x")
    folder.create_bytes("results/notes.txt", b"somebody else's")
    worker = JobWorker(settings, store, folder, None)  # type: ignore[arg-type]
    worker._remove_orphans()
    assert sorted(folder.names("results", "")) == sorted(["notes.txt", kept, deleted])  # a row may be on its way
    time.sleep(0.1)
    worker._remove_orphans()
    assert sorted(folder.names("results", "")) == ["notes.txt", kept]
    assert folder.names("uploads", "") == [f"{kept}.bin"]


# ---- clocks that jump -----------------------------------------------------------------------------------------------

HOUR = 3600.0


@pytest.mark.parametrize("jump", [20, -HOUR, 25 * HOUR])
def test_leases_and_results_do_not_follow_a_clock_that_jumps(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """In the process that began before the jump, and in one that begins after it."""
    first, second = _add(store), _add(store)
    store.beat("holder", 15)
    done, held = store.claim("holder"), None
    assert done is not None
    store.complete(done, "results", {}, keep_seconds=24 * HOUR)
    held = store.claim("holder")
    assert held is not None
    assert (done.id, held.id) == (first, second)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + jump)
    later = JobStore(store.url)
    for one in (store, later):
        one.beat("other", 15)
        assert one.claim("other") is None
        assert one.remove_expired() == []
    third = _add(later)
    page = store.page("a", None, 10, oldest_first=True)
    assert page is not None
    assert [job.id for job in page[0]] == [first, second, third]
    assert later.set_progress(held, 50)
    later.engine.dispose()


def test_a_lease_ends_and_a_result_expires_in_their_time(store: JobStore) -> None:
    _add(store)
    store.beat("holder", 0.3)
    job = store.claim("holder")
    assert job is not None
    store.beat("other", 15)
    assert store.claim("other") is None
    time.sleep(0.4)
    taken = store.claim("other")
    assert taken is not None
    store.complete(taken, "results", {}, keep_seconds=-2)
    assert store.remove_expired() == [job.id]


def test_a_machine_that_starts_with_a_wrong_clock_does_not_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    store = JobStore(url)
    before = store._now()
    assert abs(before - time.time()) < 60
    store.beat("holder", 30)
    (tmp_path / "boot_id").write_text("another start")
    monkeypatch.setattr("serve.clock.BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(time, "time", lambda: 100.0)
    assert 0 <= JobStore(url)._now() - before < 60


# ---- SQLite and other machines --------------------------------------------------------------------------------------


def test_what_a_service_stores_is_closed_in_an_open_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "uploads").mkdir(mode=0o755)
    private_storage(str(tmp_path))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path, *tmp_path.iterdir())}
    assert modes == {tmp_path.name: 0o755, "uploads": 0o700, "results": 0o700}


def test_sqlite_is_not_shared_over_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/share {tmp_path}/my\\040share nfs4 rw 0 0\n")
    monkeypatch.setattr("serve.storage.MOUNTS", mounts)
    check_sqlite(f"sqlite:///{tmp_path}/jobs.sqlite")
    check_sqlite("postgresql://host/db", nodes=3)
    with pytest.raises(ValueError, match=r"on a network file system \(nfs4\)"):
        check_sqlite(f"sqlite:///{tmp_path}/my share/data/jobs.sqlite")
    with pytest.raises(ValueError, match="ingresses on several nodes"):
        check_sqlite(f"sqlite:///{tmp_path}/jobs.sqlite", nodes=2)
