"""Worker for video jobs: claims them from the store, runs them over the deployments, and publishes the results."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from videolavit.evaluation.motion import decompose_enlarged
from videolavit.generation.output import encode_png, provenance, save_video
from videolavit.generation.program import GeneratedVideo, Program, nearest_clips
from videolavit.generation.prompts import Picture
from videolavit.generation.settings import GenerateSettings
from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import CLIP_FRAMES, Cell, MediaError, contact_sheet, draw_motion
from videolavit.records.storage import Folder, StorageError
from videolavit.scratch import scratch_folder

from .failures import REPLICA_DIED, private_traceback, root_cause
from .graph import Graph
from .heartbeat import Heartbeat
from .settings import ServeSettings
from .storage import JOB_FOLDERS
from .store import Job, JobStore
from .video_plan import SAMPLER_OPTIONS, describe_file, sampler_settings

VIDEO_FILE, THUMBNAIL_FILE, SPRITES_FILE = "video.mp4", "thumbnail.png", "spritesheet.png"

POLL, SWEEP = 0.5, 60.0
"""Intervals at which jobs of other processes are polled and expired results are removed, in seconds."""

WATCH = 1.0
"""Longest time between two checks that a job's lease is still held, in seconds."""

T = TypeVar("T")

log = logging.getLogger("videolavit.serve")


@dataclass
class _Running:
    """Job in progress in this process, and the share of it that is done, from 0 to 1."""

    job: Job
    share: float = 0.0


class JobWorker:
    """Runs video jobs, several at a time, until it is stopped.

    Args:
        on_end: Called with the final status of each job.
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
        # the database has threads of its own, so that jobs are claimed however long results take to be written
        self._database, self._files = ThreadPoolExecutor(2), ThreadPoolExecutor(2)
        self._heartbeat = Heartbeat(store, settings.lease_seconds)
        self._running: dict[asyncio.Task[None], Job] = {}
        self._orphans: dict[str, float] = {}
        self._wake_up = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to look for jobs."""
        self._loops = [asyncio.create_task(self._work()), asyncio.create_task(self._sweep())]

    def wake(self) -> None:
        """Makes the worker look for a new job at once."""
        self._wake_up.set()

    async def stop(self) -> None:
        """Stops looking for jobs, and puts those in progress back into the queue."""
        self._stopping = True
        self.wake()
        for task in self._loops[1:]:  # not the first, which may be claiming a job
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        running = dict(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for job in running.values():  # without effect on a job that has ended
            await self._unless_storage_fails(self._store.release, job)
        await self._unless_storage_fails(self._heartbeat.stop)

    async def _work(self) -> None:
        while not self._stopping:
            self._wake_up.clear()
            await self._unless_storage_fails(self._heartbeat.keep_running)
            job = None
            if len(self._running) < self._settings.concurrent_jobs:
                leases = [str(job.lease) for job in self._running.values()]
                job = await self._unless_storage_fails(self._store.claim, self._heartbeat.holder, leases)
            if job is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake_up.wait(), POLL)
                continue
            task = asyncio.create_task(self._run(job))
            self._running[task] = job
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a job could not be ended and will be started again: %s", type(error).__name__)
        self.wake()

    async def _run(self, job: Job) -> None:
        """Runs one job to its end, for as long as its lease is held."""
        keep, attempts = self._settings.result_hours * 3600, self._settings.limits.job_attempts
        if job.attempts > attempts:
            message = f"it was interrupted {attempts} times by the end of its process"
            await self._end(job, self._store.fail, "interrupted", message, keep)
            return
        running = _Running(job)
        working = asyncio.create_task(self._execute(running))
        watching = asyncio.create_task(self._watch_lease(running))
        try:
            async with asyncio.timeout(self._settings.limits.job_seconds):
                await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                return  # the lease is lost: the job was deleted, or another process has it
            name, tokens = working.result()
            if not await self._end(job, self._store.complete, name, tokens, keep):
                await self._in(self._files, self._folder.remove, name)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():  # by `stop`, not by a deployment
                raise
        except TimeoutError:
            limit = f"not finished within {self._settings.limits.job_seconds:g} s"
            await self._end(job, self._store.fail, "deadline_exceeded", limit, keep)
        except Exception as error:
            if isinstance(root_cause(error), REPLICA_DIED):  # other replicas will do it, once there are any
                delay = self._settings.lease_seconds
                await self._in(self._database, self._store.retry_later, job, delay)
                return
            code, message = _reason(error)
            if code == "server_error":
                log.error("job %s failed: %s", job.id, private_traceback(error))
            await self._end(job, self._store.fail, code, message, keep)
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _end(self, job: Job, method: Callable[..., bool], *values: Any) -> bool:
        ended: bool = await self._in(self._database, method, job, *values)
        if ended:
            if job.request.get("upload"):
                await self._in(self._files, self._folder.remove, job.request["upload"])
            self._on_end("completed" if method == self._store.complete else "failed")
        return ended

    async def _watch_lease(self, running: _Running) -> None:
        """Stores the progress of a job every second; returns when its lease is lost."""
        while True:
            progress = min(99, int(running.share * 100))
            held = await self._unless_storage_fails(self._store.set_progress, running.job, progress)
            if held is False:
                return
            await asyncio.sleep(min(WATCH, self._settings.lease_seconds / 4))

    async def _execute(self, running: _Running) -> tuple[str, dict[str, int]]:
        """Generates the video; returns the folder of its files and the number of its tokens by kind."""

        def on_progress(share: float) -> None:
            running.share = share

        job = running.job
        settings = sampler_settings(self._settings.generation, job.request)
        program, size, warnings = await self._program(job, settings)
        known = job.request | describe_file(program.num_frames, size, settings.fps) | {"warnings": warnings}
        if known != job.request:
            await self._in(self._database, self._store.set_request, job, known)
        video = await self._graph.video(program, size, settings, on_progress)
        name = f"results/{job.id}/{job.lease}"
        await self._in(self._files, self._publish, job, name, video)
        return name, video.tokens

    async def _program(self, job: Job, settings: GenerateSettings) -> tuple[Program, tuple[int, int], list[str]]:
        """Program of a job, height and width of its video, and warnings for the client."""
        request, most_frames = job.request, self._settings.limits.seconds * settings.fps
        upload = None
        if "upload" in request:
            upload = await self._in(self._files, self._folder.read, request["upload"])
            if upload is None:
                raise StorageError("the upload is gone")
        if job.kind == "reconstruct":
            assert upload is not None
            most_clips = max(1, int(most_frames // CLIP_FRAMES))
            made = await self._graph.reconstruction(upload, request["seed"], most_clips)
            cut = f"the video goes on: its first {most_clips} clips are reconstructed, up to the limit"
            return made.program, made.size, [cut] if made.is_cut else []
        width, height = map(int, request["size"].split("x"))
        # jobs of version 0.1 have seconds alone
        clips = nearest_clips(request.get("num_frames") or float(request["seconds"]) * settings.fps, most_frames)
        program = await self._graph.video_program(request["prompt"], upload, request["seed"], clips, settings)
        return program, (height, width), request.get("warnings", [])

    def _publish(self, job: Job, name: str, video: GeneratedVideo) -> None:
        """Writes the result files, which nobody sees before the job is completed."""
        fps = self._settings.generation.fps
        with scratch_folder() as scratch:
            file = scratch / VIDEO_FILE
            options = {name: job.request[name] for name in SAMPLER_OPTIONS if name in job.request}
            prompt, seed = job.request.get("prompt", ""), job.request["seed"]
            about = provenance(prompt, seed, self._settings.model_name, **options)
            save_video(video.frames, file, fps, about)
            self._folder.create(f"{name}/{VIDEO_FILE}", file)
        self._folder.create_bytes(f"{name}/{THUMBNAIL_FILE}", encode_png(video.keyframes[0], {}))
        self._folder.create_bytes(f"{name}/{SPRITES_FILE}", encode_png(sprites(video, fps), {}))

    async def _sweep(self) -> None:
        """Removes the files of deleted and expired jobs, from time to time."""
        while True:
            await self._unless_storage_fails(self._remove_orphans, threads=self._files)
            await asyncio.sleep(SWEEP)

    def _remove_orphans(self) -> None:
        self._store.remove_expired()
        stored = {kind: self._folder.names(kind, "") for kind in JOB_FOLDERS}
        known = self._store.ids()  # read last, because the upload of a new job is stored before its row
        now, orphans = time.monotonic(), self._orphans
        found = {
            f"{kind}/{name}"
            for kind, names in stored.items()
            for name in names
            if name.startswith("video_") and name.split(".")[0] not in known
        }
        self._orphans = {name: orphans.get(name, now) for name in found}
        for name, since in self._orphans.items():
            if now - since > self._settings.limits.request_seconds:  # no request is about to use it
                self._folder.remove(name)

    async def _unless_storage_fails(
        self, call: Callable[..., Any], *arguments: Any, threads: ThreadPoolExecutor | None = None
    ) -> Any:
        """Result of a call; None, and a line in the log, if the database or the storage does not answer."""
        try:
            return await self._in(threads or self._database, call, *arguments)
        except Exception as error:
            log.warning("%s: %s", getattr(call, "__name__", "storage"), type(error).__name__)
            return None

    async def _in(self, threads: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)


def sprites(video: GeneratedVideo, fps: int) -> Picture:
    """Contact sheet of a video: the keyframe of each clip, with the motion of its first second as arrows."""
    cells = [
        Cell(draw_motion(clip.keyframe, clip.motion[:fps].sum(axis=0, dtype=np.int16)), f"{clip.seconds:.1f} s")
        for clip in decompose_enlarged(video.frames, fps)
    ]
    return contact_sheet(cells)


def _reason(error: Exception) -> tuple[str, str]:
    """Error code and message of a failed job, without paths or tracebacks."""
    cause = root_cause(error)
    if isinstance(cause, MediaError):
        return "invalid_input", str(cause)
    if isinstance(cause, PromptTooLong):
        return "prompt_too_long", str(cause)
    return "server_error", "the video could not be generated; try again"
