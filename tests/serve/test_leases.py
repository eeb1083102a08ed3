"""Leases of video jobs on a machine whose processors others use, and while their holder answers nobody."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from serve.settings import read_settings
from serve.store import JobStore, new_id
from serve.video_jobs import JobWorker
from tests.conftest import wait_for
from videolavit.generation.program import GeneratedVideo, Program, video_program
from videolavit.generation.settings import GenerateSettings
from videolavit.records.storage import Folder, StorageSettings

LEASE = 1.0
"""Seconds. The job takes many of them."""

SPAWN = multiprocessing.get_context("spawn")


class _Graph:
    """Stands where the deployments are, and takes time.

    Args:
        block: Called again and again in the event loop.
        pause: Seconds between two calls.
    """

    def __init__(self, block: Callable[[], object], pause: float, rounds: int) -> None:
        self._block, self._pause, self._rounds = block, pause, rounds
        self.steps, self.cancelled = 0, False

    async def video_program(
        self, prompt: str, reference: bytes | None, seed: int, clips: int, settings: GenerateSettings
    ) -> Program:
        assert reference is None
        return video_program([prompt], seed, clips, settings.constraint)

    async def video(self, *arguments: Any) -> GeneratedVideo:
        on_progress = arguments[-1]
        try:
            for number in range(self._rounds):
                self._block()
                await asyncio.sleep(self._pause)
                on_progress(number / self._rounds)
                self.steps += 1
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        frames = np.zeros((24, 48, 72, 3), np.uint8)
        return GeneratedVideo(frames, [frames[0]], [[0]], [])


def _block() -> None:
    """Holds up the event loop, and then every thread of the process, for several leases each."""
    time.sleep(3 * LEASE)
    deadline = time.monotonic() + 3 * LEASE
    while time.monotonic() < deadline:
        sum(range(10**8))  # one call, during which no other thread runs


def _worker(storage: Path, graph: _Graph) -> JobWorker:
    settings = read_settings({"storage": str(storage), "lease_seconds": LEASE})
    folder = Folder(settings.storage, StorageSettings())
    return JobWorker(settings, JobStore(_url(storage)), folder, graph)  # type: ignore[arg-type]


def _url(storage: Path) -> str:
    return f"sqlite:///{storage / 'jobs.sqlite'}"


def _work(storage: Path) -> None:
    """Runs a worker whose jobs block it."""

    async def run() -> None:
        worker = _worker(storage, _Graph(_block, 0.1, rounds=2))
        worker.start()
        await asyncio.sleep(600)

    asyncio.run(run())


def _burn() -> None:
    while True:
        pass


@pytest.fixture
def _busy_machine() -> Iterator[None]:
    """A process for each core that leaves it nothing."""
    burners = [SPAWN.Process(target=_burn, daemon=True) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    yield
    for burner in burners:
        burner.kill()


def _queue(store: JobStore) -> str:
    job_id = new_id()
    request = {"prompt": "x", "seed": 0, "size": "72x48", "seconds": "4"}
    assert store.add("a", "generate", request, 10, 10, job_id) is not None
    return job_id


@pytest.mark.usefixtures("_busy_machine")
def test_a_blocked_process_on_a_busy_machine_keeps_its_jobs(tmp_path: Path) -> None:
    """Another process wants the job all the time, and never gets it."""
    store = JobStore(_url(tmp_path))
    job_id = _queue(store)
    worker = SPAWN.Process(target=_work, args=(tmp_path,), daemon=True)
    worker.start()
    try:
        wait_for(lambda: _status(store, job_id) == ("in_progress", 1), "the job is not started")
        deadline = time.monotonic() + 120
        while _status(store, job_id)[0] == "in_progress" and time.monotonic() < deadline:
            store.beat("rival", 60)
            claimed = store.claim("rival")
            assert claimed is None, claimed
            time.sleep(0.05)
        assert _status(store, job_id) == ("completed", 1)
    finally:
        worker.kill()
        worker.join()


def test_a_job_of_a_killed_process_is_free_after_its_lease(tmp_path: Path) -> None:
    """The heartbeat ends with its process."""
    store = JobStore(_url(tmp_path))
    job_id = _queue(store)
    worker = SPAWN.Process(target=_work, args=(tmp_path,), daemon=True)
    worker.start()
    wait_for(lambda: _status(store, job_id) == ("in_progress", 1), "the job is not started")
    (heartbeat,) = _heartbeats(worker.pid)
    worker.kill()
    worker.join()
    wait_for(lambda: not heartbeat.is_running() or heartbeat.status() == psutil.STATUS_ZOMBIE, "it goes on", 10)
    store.beat("rival", 60)
    wait_for(lambda: store.claim("rival", ["none"]) is not None, "the job is not free", 10)
    assert _status(store, job_id) == ("in_progress", 2)


def test_work_stops_when_its_lease_is_lost_and_the_attempt_is_given_back(tmp_path: Path) -> None:
    """The heartbeat alone is held up, until another process has the job."""

    async def run() -> None:
        graph = _Graph(lambda: None, 0.05, rounds=1000)
        worker = _worker(tmp_path, graph)
        store = JobStore(_url(tmp_path))
        job_id = _queue(store)
        worker.start()
        await _until(lambda: graph.steps > 0)
        (heartbeat,) = _heartbeats(os.getpid())
        heartbeat.send_signal(signal.SIGSTOP)
        store.beat("rival", 60)
        await _until(lambda: store.claim("rival") is not None)
        lost = time.monotonic()
        assert _status(store, job_id) == ("in_progress", 2)
        await _until(lambda: graph.cancelled)
        assert time.monotonic() - lost < 1
        heartbeat.send_signal(signal.SIGCONT)
        await _until(lambda: _status(store, job_id) == ("in_progress", 1))
        await worker.stop()
        assert _status(store, job_id) == ("in_progress", 1)  # still the other's

    asyncio.run(run())


def test_a_heartbeat_that_ended_is_replaced(tmp_path: Path) -> None:
    async def run() -> None:
        graph = _Graph(lambda: None, 0.05, rounds=1000)
        worker = _worker(tmp_path, graph)
        worker.start()
        await _until(lambda: len(_heartbeats(os.getpid())) == 1)
        (first,) = _heartbeats(os.getpid())
        first.kill()
        await _until(lambda: [found.pid for found in _heartbeats(os.getpid())] not in ([], [first.pid]))
        job_id = _queue(JobStore(_url(tmp_path)))
        worker.wake()
        await _until(lambda: graph.steps > 0)
        await worker.stop()
        assert graph.cancelled
        assert _status(JobStore(_url(tmp_path)), job_id) == ("queued", 0)
        assert _heartbeats(os.getpid()) == []

    asyncio.run(run())


def _heartbeats(pid: int | None) -> list[psutil.Process]:
    """Heartbeat processes among the children of a process."""
    children = psutil.Process(pid).children()
    return [child for child in children if child.is_running() and "serve.heartbeat" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _status(store: JobStore, job_id: str) -> tuple[str, int]:
    job = store.get("a", job_id)
    assert job is not None
    return job.status, job.attempts


async def _until(ready: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
