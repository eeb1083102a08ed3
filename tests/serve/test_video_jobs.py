"""Worker for video jobs, with a real database."""

import asyncio
import time
from collections.abc import Collection
from pathlib import Path

from serve.settings import read_settings
from serve.store import Job, JobStore, new_id
from serve.video_jobs import JobWorker
from tests.conftest import wait_for
from videolavit.records.storage import Folder, StorageSettings

from .running import graph_without_deployments


class SlowStore(JobStore):
    """Database whose answer to a successful claim takes a second."""

    def claim(self, holder: str, running: Collection[str] = ()) -> Job | None:
        job = super().claim(holder, running)
        if job is not None:
            time.sleep(1)
        return job


def test_a_job_that_is_being_claimed_when_the_worker_stops_returns_to_the_queue(tmp_path: Path) -> None:
    store, folder = SlowStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), Folder(str(tmp_path), StorageSettings())
    settings = read_settings({"storage": str(tmp_path)})
    job = store.add("a", "generate", {"prompt": "x", "seconds": "4", "size": "96x64", "seed": 0}, 9, 9, new_id())
    assert job is not None

    def stored() -> Job:
        found = store.get("a", job.id)
        assert found is not None
        return found

    async def run() -> None:
        worker = JobWorker(settings, store, folder, graph_without_deployments())
        worker.start()
        await asyncio.to_thread(wait_for, lambda: stored().status == "in_progress", "the job is not claimed")
        await worker.stop()
        assert (stored().status, stored().attempts, stored().lease) == ("queued", 0, None)

    asyncio.run(run())
