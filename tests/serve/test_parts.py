"""Parts of the service by themselves: the job store, the batcher, the fetcher, the settings."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema
from sqlalchemy import text

from serve.application import build
from serve.batching import Finished, StepBatcher, StepDone
from serve.deployments import LanguageModelDeployment
from serve.errors import ApiError
from serve.fetching import Fetcher, is_public
from serve.graph import Graph
from serve.keys import Admission, add_key, read_keys
from serve.requests import AnswerRequest
from serve.service import Service
from serve.settings import read_settings
from serve.store import HOLDERS, JOBS, TAKEOVERS, JobStore, new_id
from serve.video_jobs import JobWorker
from tests.conftest import ROOT, free_port
from videolavit.generation.describe import DescribeSettings
from videolavit.models.folder import ModelFolder
from videolavit.models.sampling import OnStep
from videolavit.records.storage import Folder, StorageSettings

EXPIRED = -1.0
"""Length of a lease that has expired when it begins, in seconds."""

# ---- the store ------------------------------------------------------------------------------------------------------


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
    with opened.engine.begin() as connection:
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
    time.sleep(0.1)
    JobWorker(settings, store, folder, None)._remove_orphans()  # type: ignore[arg-type]
    assert sorted(folder.names("results", "")) == ["notes.txt", kept]
    assert folder.names("uploads", "") == [f"{kept}.bin"]


# ---- the batcher ----------------------------------------------------------------------------------------------------


class _Sampler:
    """Counts to five, and records the batch of each step."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begin = threading.Event()

    def __call__(self, requests: list[str], on_step: OnStep) -> Sequence[str]:
        self.begin.wait(10)
        rows = list(requests)
        for step in range(5):
            self.batches.append(list(rows))
            time.sleep(0.02)
            kept = on_step(step + 1, 5)
            rows = rows if kept is None else [rows[row] for row in kept]
        if "bad" in rows:
            raise ValueError("a bad request")
        return [row.upper() for row in rows]


async def _last(batcher: StepBatcher[str, str], request: str) -> tuple[str, list[int]]:
    steps: list[int] = []
    async for event in batcher.run(request):
        if isinstance(event, StepDone):
            steps.append(event.done)
        else:
            assert isinstance(event, Finished)
            return event.value, steps
    raise AssertionError("no end")


def test_requests_of_one_shape_share_a_batch() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.2)

    async def run() -> list[tuple[str, list[int]]]:
        return list(await asyncio.gather(*(_last(batcher, request) for request in ("ab", "cd", "xyz", "ef", "gh"))))

    results = asyncio.run(run())
    assert [value for value, _ in results] == ["AB", "CD", "XYZ", "EF", "GH"]
    assert all(steps == [1, 2, 3, 4, 5] for _, steps in results)
    assert [batch for number, batch in enumerate(sampler.batches) if number % 5 == 0] == [
        ["ab", "cd", "ef"],
        ["xyz"],
        ["gh"],
    ]


def test_a_cancelled_request_leaves_its_batch_at_the_next_step() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.2)

    async def run() -> tuple[str, list[int]]:
        left = asyncio.create_task(_last(batcher, "ab"))
        stays = asyncio.create_task(_last(batcher, "cd"))
        while not sampler.batches:
            await asyncio.sleep(0.005)
        left.cancel()
        return await stays

    assert asyncio.run(run()) == ("CD", [1, 2, 3, 4, 5])
    assert sampler.batches[0] == ["ab", "cd"]
    assert sampler.batches[-1] == ["cd"]


def test_a_cancelled_batch_stops_and_errors_reach_all_of_a_batch() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.05)

    async def run() -> None:
        alone = asyncio.create_task(_last(batcher, "a"))
        while not sampler.batches:
            await asyncio.sleep(0.005)
        alone.cancel()
        for other in ("bad", "ok!"):
            with pytest.raises(ValueError, match="a bad request"):
                await asyncio.gather(_last(batcher, "bad"), _last(batcher, other))
        assert (await _last(batcher, "x"))[0] == "X"

    asyncio.run(run())
    assert len([batch for batch in sampler.batches if batch == ["a"]]) < 5


# ---- the language model ---------------------------------------------------------------------------------------------


def test_an_answer_is_the_same_streamed_and_complete() -> None:
    async def run() -> None:
        model = LanguageModelDeployment(read_settings({"model": "tiny"}))
        request = AnswerRequest((), "hello", None, DescribeSettings(min_tokens=400, max_tokens=400), stream=True)
        parts = [part async for part in model.stream_answer(request)]
        whole = await model.answer(replace(request, stream=False))
        assert len(parts) > 2
        assert "".join(part.text for part in parts) == whole.text
        assert (parts[-1].tokens, parts[-1].finished) == (whole.tokens, whole.finished) == (400, "length")

    asyncio.run(run())


def test_an_answer_that_nobody_reads_is_not_generated_on() -> None:
    async def run() -> None:
        model = LanguageModelDeployment(read_settings({"model": "tiny"}))
        settings = DescribeSettings(min_tokens=3000, max_tokens=3000)
        answer = model.stream_answer(AnswerRequest((), "hello", None, settings, stream=True))
        await anext(answer)
        assert model._chat_engine.load == (1, 0)
        await answer.aclose()
        for _ in range(100):
            if model._chat_engine.load == (0, 0):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it goes on")

    asyncio.run(run())


# ---- the fetcher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "224.0.0.1",
        "::1",
        "fc00::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert is_public("64:ff9b::5db8:d70e")


def test_only_allowed_hosts_at_public_addresses_are_fetched_from() -> None:
    async def run() -> None:
        paths: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            paths.append(request.path)
            if request.path == "/moved":
                raise web.HTTPFound("http://127.0.0.1/elsewhere")
            return web.Response(body=b"x" * 5000, content_type="image/png")

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        url = f"http://localhost:{port}"
        try:
            with pytest.raises(ApiError, match="does not fetch"):
                await Fetcher([], 10_000).read(f"{url}/a", "p")
            for broken in ("http://[", "data:image/png;base64,\u00e4", "nonsense"):
                with pytest.raises(ApiError):
                    await Fetcher([], 10_000).read(broken, "p")
            for host in ("localhost", "127.0.0.1"):
                with pytest.raises(ApiError, match="not on the public internet"):
                    await Fetcher([host], 10_000).read(f"http://{host}:{port}/a", "p")
            assert paths == []
            open_to_tests = Fetcher(["localhost"], 10_000, allowed=lambda address: True)
            assert await open_to_tests.read(f"{url}/a", "p") == (b"x" * 5000, "image/png")
            with pytest.raises(ApiError, match="status 302"):
                await open_to_tests.read(f"{url}/moved", "p")
            with pytest.raises(ApiError, match="larger than 4000"):
                await Fetcher(["localhost"], 4000, allowed=lambda address: True).read(f"{url}/a", "p")
            assert "/elsewhere" not in paths
        finally:
            await runner.cleanup()

    asyncio.run(run())


# ---- settings and keys ----------------------------------------------------------------------------------------------


def test_deployments_have_batch_sizes_that_suit_them() -> None:
    settings = read_settings({"language_model": {"max_replicas": 2}, "video_detokenizer": {"num_gpus": 1}})
    assert settings.language_model.largest_batch == 32
    assert (settings.keyframe_detokenizer.largest_batch, settings.video_detokenizer.largest_batch) == (2, 8)
    assert read_settings({"video_detokenizer": {"batch_size": 4}}).video_detokenizer.largest_batch == 4


@pytest.mark.parametrize(
    ("values", "replicas"),
    [
        ({}, (2, 2)),
        ({"num_gpus": 0.5}, (1, 1)),
        ({"max_replicas": 1}, (1, 1)),
        ({"max_replicas": 4}, (2, 4)),
        ({"min_replicas": 3}, (3, 3)),
        ({"min_replicas": 1, "max_replicas": 2}, (1, 2)),
    ],
)
def test_a_video_detokenizer_without_a_gpu_has_two_replicas_by_default(
    values: dict[str, object], replicas: tuple[int, int]
) -> None:
    settings = read_settings({"video_detokenizer": values})
    assert settings.video_detokenizer.replica_range == replicas
    assert settings.keyframe_detokenizer.replica_range == (1, 1)


def test_the_cluster_config_is_one_of_rays_own_schema_and_builds() -> None:
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert application.import_path == "serve.application:build"
    graph = build(config["applications"][0]["args"])
    assert graph._bound_deployment.name == "Ingress"
    with pytest.raises(ValueError, match="absolute path"):
        build({"storage": "here"})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modle": "tiny"}, "modle"),
        ({"limits": {"in_flights": 3}}, "limits.in_flights"),
        ({"limits": {"in_flight": 0}}, "in_flight must be above 0"),
        ({"language_model": {"batch_size": "many"}}, "language_model.batch_size"),
        ({"host": "0.0.0.0"}, "give API keys"),
        ({"storage": "s3://bucket/x"}, "give a database"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_settings(values)


def test_without_keys_only_this_machine_is_answered() -> None:
    admission = Admission(None, max_in_flight=3)
    assert admission.authenticate(None, "127.0.0.1") == admission.authenticate(None, "::1")
    for client in ("10.0.0.7", "93.184.215.14", ""):
        with pytest.raises(ApiError) as refused:
            admission.authenticate(None, client)
        assert refused.value.status == 403


def test_a_stopping_service_finishes_requests_and_admits_none(tmp_path: Path) -> None:
    async def run() -> None:
        handles: list[DeploymentHandle] = [None] * 4  # type: ignore[list-item]
        settings = read_settings({"storage": str(tmp_path)})
        service = Service(settings, Graph(*handles, ModelFolder("tiny")))
        may_finish = asyncio.Event()

        async def request() -> None:
            async with service.admission.admit("a"):
                await may_finish.wait()

        task = asyncio.create_task(request())
        await asyncio.sleep(0)
        await service.drain(0.05)
        assert service.admission.in_flight == 1
        asyncio.get_running_loop().call_later(0.2, may_finish.set)
        await service.drain(60)
        assert service.admission.in_flight == 0
        with pytest.raises(ApiError, match="stopping") as refused:
            await request()
        assert refused.value.status == 503
        await task

    asyncio.run(run())


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.json")
    secret = add_key(file, "a")
    assert secret not in Path(file).read_text()
    assert Path(file).stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="already has a key a"):
        add_key(file, "a")
    add_key(file, "b")
    assert [key.name for key in read_keys(file)] == ["a", "b"]
    Path(file).write_text('{"keys": [{"name": "a", "sha256": "abc"}]}')
    with pytest.raises(ValueError, match="not a file of API keys"):
        read_keys(file)
