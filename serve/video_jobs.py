"""Works on video jobs: claims them from the store, renews their leases, publishes what they made."""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from videolavit.evaluation.motion import decomposed
from videolavit.generation.output import origin, png, save_video
from videolavit.generation.prompts import Picture
from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import MediaError, contact_sheet, draw_motion
from videolavit.records.storage import Folder, StorageError

from .failures import DIED, root
from .graph import Graph, VideoResult
from .settings import ServeSettings
from .store import Job, JobStore

VIDEO, THUMBNAIL, SPRITES = "video.mp4", "thumbnail.png", "spritesheet.png"
CLIP_SECONDS = 4.0
"""A clip's 24 frames at 6 frames a second."""

POLL, SWEEP = 0.5, 60.0
"""Seconds between two looks for jobs of other processes, and between two sweeps of expired results."""

T = TypeVar("T")

log = logging.getLogger("videolavit.serve")


class JobWorker:
    """Runs jobs, some at a time, until it is stopped.

    Args:
        on_end: Called with how each job ended, for measurements.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: JobStore,
        folder: Folder,
        graph: Graph,
        on_end: Callable[[str], None] = lambda status: None,
    ) -> None:
        self._settings, self._store, self._folder, self._graph = settings, store, folder, graph
        self._on_end = on_end
        # leases are renewed in time however long results take to be written
        self._storing, self._publishing = ThreadPoolExecutor(2), ThreadPoolExecutor(2)
        self._running: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to look for jobs."""
        self._loops = [asyncio.create_task(self._work()), asyncio.create_task(self._sweep())]

    def wake(self) -> None:
        """There is a new job."""
        self._news.set()

    async def stop(self) -> None:
        """Stops looking, and gives what is in work back to the queue."""
        tasks = [*self._loops, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            self._news.clear()
            job = None
            if len(self._running) < self._settings.jobs_at_once:
                job = await self._unless_storage_fails(self._store.claim, self._settings.lease_seconds)
            if job is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), POLL)
                continue
            task = asyncio.create_task(self._run(job))
            self._running.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.wake()

    async def _run(self, job: Job) -> None:
        """One job, from its lease to its end."""
        keep, attempts = self._settings.result_hours * 3600, self._settings.limits.job_attempts
        if job.attempts > attempts:
            message = f"it was interrupted {attempts} times by the end of its process"
            await self._end(job, self._store.fail, "interrupted", message, keep)
            return
        state = {"progress": 0.0}
        making = asyncio.create_task(self._make(job, state))
        renewing = asyncio.create_task(self._renew(job, state))
        try:
            async with asyncio.timeout(self._settings.limits.job_seconds):
                await asyncio.wait({making, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                return  # the lease is lost: it was deleted, or another process has it
            name, tokens = making.result()
            if not await self._end(job, self._store.complete, name, tokens, keep):
                await self._in(self._publishing, self._folder.remove, name)
        except asyncio.CancelledError:
            stopped = asyncio.current_task()
            if stopped is not None and stopped.cancelling():  # by `stop`, and not from below
                await asyncio.shield(self._in(self._storing, self._store.release, job))
                raise
        except TimeoutError:
            limit = f"not finished within {self._settings.limits.job_seconds:g} s"
            await self._end(job, self._store.fail, "deadline_exceeded", limit, keep)
        except Exception as error:
            if isinstance(root(error), DIED):
                return  # the deployments are going, or coming: when the lease runs out, the job is begun again
            code, message = _reason(error)
            if code == "server_error":
                log.exception("job %s failed", job.id)
            await self._end(job, self._store.fail, code, message, keep)
        finally:
            for task in (making, renewing):
                task.cancel()
            await asyncio.gather(making, renewing, return_exceptions=True)

    async def _end(self, job: Job, how: Callable[..., bool], *values: Any) -> bool:
        ended: bool = await self._in(self._storing, how, job, *values)
        if ended:
            if job.request.get("upload"):
                await self._in(self._publishing, self._folder.remove, job.request["upload"])
            self._on_end("completed" if how == self._store.complete else "failed")
        return ended

    async def _renew(self, job: Job, state: dict[str, float]) -> None:
        """Keeps the lease; returns when it is lost."""
        every = min(1.0, self._settings.lease_seconds / 4)
        while True:
            progress = min(99, int(state["progress"] * 100))
            held = await self._unless_storage_fails(self._store.renew, job, progress, self._settings.lease_seconds)
            if held is False:
                return
            await asyncio.sleep(every)

    async def _make(self, job: Job, state: dict[str, float]) -> tuple[str, dict[str, int]]:
        """Makes the video; returns the folder of its files, and the tokens that it came through."""

        def tell(share: float) -> None:
            state["progress"] = share

        asked, settings = job.request, self._settings.generation
        upload = None
        if asked.get("upload"):
            upload = await self._in(self._publishing, self._folder.read, asked["upload"])
            if upload is None:
                raise StorageError("the upload is gone")
        if job.kind == "reconstruct":
            assert upload is not None
            clips = _clips(self._settings.limits.seconds)
            made = await self._graph.reconstruct(upload, asked["seed"], clips, settings, tell)
        else:
            size, clips = _size(asked["size"]), _clips(float(asked["seconds"]))
            made = await self._graph.video(asked["prompt"], upload, asked["seed"], clips, size, settings, tell)
        name = f"results/{job.id}/{job.lease}"
        await self._in(self._publishing, self._publish, job, name, made)
        return name, made.tokens

    def _publish(self, job: Job, name: str, made: VideoResult) -> None:
        """Writes the files of a result; nobody sees them before the job is completed."""
        fps = self._settings.generation.fps
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / VIDEO
            about = origin(job.request.get("prompt", ""), job.request["seed"], self._settings.model_name)
            save_video(made.frames, file, fps, about)
            self._folder.create(f"{name}/{VIDEO}", file)
        self._folder.create_bytes(f"{name}/{THUMBNAIL}", png(made.keyframes[0], {}))
        self._folder.create_bytes(f"{name}/{SPRITES}", png(sprites(made, fps), {}))

    async def _sweep(self) -> None:
        """Removes the files of jobs that are gone."""
        while True:
            await self._unless_storage_fails(self._remove_orphans, threads=self._publishing)
            await asyncio.sleep(SWEEP)

    def _remove_orphans(self) -> None:
        self._store.expired()
        stored = {kind: self._folder.names(kind, "") for kind in ("results", "uploads")}
        known = self._store.ids()  # read last: a new job's upload is there before its row, for a moment
        for kind, names in stored.items():
            for name in names:
                if name.startswith("video_") and name.split(".")[0] not in known and self._is_old(f"{kind}/{name}"):
                    self._folder.remove(f"{kind}/{name}")

    def _is_old(self, name: str) -> bool:
        """Whether no request or job can still be about to use a file."""
        try:
            changed = self._folder.fs.modified(self._folder.join(name)).timestamp()
        except (NotImplementedError, OSError, KeyError, AttributeError):
            return True
        return bool(time.time() - changed > self._settings.limits.request_seconds)

    async def _unless_storage_fails(
        self, call: Callable[..., Any], *arguments: Any, threads: ThreadPoolExecutor | None = None
    ) -> Any:
        """The call's result; None, and a line in the log, if the database or the storage does not answer."""
        try:
            return await self._in(threads or self._storing, call, *arguments)
        except Exception as error:
            log.warning("%s: %s", getattr(call, "__name__", "storage"), type(error).__name__)
            return None

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)


def sprites(made: VideoResult, fps: int) -> Picture:
    """The keyframe of each clip with the motion of its first second as arrows: what the video is made of."""
    cells = [
        (draw_motion(clip.keyframe, clip.motion[:fps].sum(axis=0, dtype=np.int16)), f"{clip.seconds:.1f} s")
        for clip in decomposed(made.frames, fps)
    ]
    return contact_sheet(cells)


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `WIDTHxHEIGHT`."""
    width, height = map(int, text.split("x"))
    return height, width


def _clips(seconds: float) -> int:
    return max(1, round(seconds / CLIP_SECONDS))


def _reason(error: Exception) -> tuple[str, str]:
    """Code and message of a failed job, without paths or tracebacks."""
    cause = root(error)
    if isinstance(cause, MediaError):
        return "invalid_input", str(cause)
    if isinstance(cause, PromptTooLong):
        return "prompt_too_long", str(cause)
    return "server_error", "the video could not be made; try again"
