"""Video jobs as clients ask for them: checks of requests, idempotency keys, and the answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from videolavit.generation.program import TokensRequest, nearest_clips
from videolavit.generation.prompts import EncodedPart
from videolavit.generation.token_generator import TokenGrammar
from videolavit.models.folder import ModelFolder
from videolavit.records.storage import Folder

from .errors import ApiError, bad_request, too_many, unavailable
from .fetching import Fetcher
from .keys import Admission
from .prompts import check_model, check_prompt, given_or_drawn
from .protocol.videos import ReconstructRequest, VideoError, VideoJob, VideoRequest
from .settings import ServeSettings
from .store import OPEN, Idempotency, Job, JobStore, is_id, new_id
from .video_jobs import JobWorker
from .video_plan import plan_video

WAIT_SECONDS = 0.25
"""Interval at which a request that waits for its video looks at the job, in seconds."""


class Videos:
    """Accepts requests for videos, and tells the state of their jobs.

    Args:
        worker: Worker of this process, which is told of new jobs; any process may run them.
    """

    def __init__(
        self,
        settings: ServeSettings,
        model: ModelFolder,
        store: JobStore,
        folder: Folder,
        worker: JobWorker,
        fetcher: Fetcher,
        admission: Admission,
    ) -> None:
        self.settings, self.store, self.folder = settings, store, folder
        self._model, self._worker, self._fetcher, self._admission = model, worker, fetcher, admission
        self._grammar = TokenGrammar(model, model.text_tokenizer(), settings.generation)

    async def create(
        self, owner: str, request: VideoRequest, reference: bytes | None, key: str | None
    ) -> tuple[Job, bool]:
        """Queues a job that generates a video from a text, an image, or both; or finds that of an idempotency key.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: the request is not valid, its key belongs to another one, or too many jobs are open.
            PromptTooLong: the prompt and the clips exceed the context of the language model.
        """
        check_model(request.model, self.settings)
        if reference is not None and request.input_reference is not None:
            raise bad_request("give one input_reference", "input_reference")
        has_picture = reference is not None or request.input_reference is not None
        check_prompt(request.prompt, self.settings, required=not has_picture)
        plan = plan_video(request, self._model, self.settings)
        idempotency = _idempotency(key, "generate", request, reference)
        if (known := await self._known(owner, idempotency)) is not None:
            return known, False
        self._check_length(request.prompt, has_picture, plan["num_frames"])
        if request.input_reference is not None:
            reference, _ = await self._fetcher.read(request.input_reference.image_url, "input_reference")
        stored = {"prompt": request.prompt, "seed": given_or_drawn(request.seed)} | plan
        return await self._queue(owner, "generate", stored, reference, idempotency)

    async def create_reconstruction(
        self, owner: str, request: ReconstructRequest, video: bytes, key: str | None
    ) -> tuple[Job, bool]:
        """Queues a job that reconstructs a video from its tokens. Returns and raises as `create`."""
        check_model(request.model, self.settings)
        idempotency = _idempotency(key, "reconstruct", request, video)
        if (known := await self._known(owner, idempotency)) is not None:
            return known, False
        stored = {"prompt": "", "seed": given_or_drawn(request.seed)}
        return await self._queue(owner, "reconstruct", stored, video, idempotency)

    async def make(self, owner: str, request: VideoRequest, reference: bytes | None, key: str | None) -> Job:
        """Queues a job as `create`, and waits until it is completed. A new job is deleted if the wait ends before.

        Raises:
            ApiError: as `create`; or the job failed or was deleted, or the service is stopping.
        """
        job, is_new = await self.create(owner, request, reference, key)
        try:
            while job.status in OPEN:
                if self._admission.closed:
                    raise unavailable("the service is stopping")
                await asyncio.sleep(WAIT_SECONDS)
                job = await self.find(owner, job.id)
        except BaseException:  # the client has left, the deadline has passed, or the service is stopping
            if is_new:
                await asyncio.shield(asyncio.to_thread(self.remove, owner, job.id))
            raise
        if job.status == "failed":
            raise _failure(job)
        return job

    async def find(self, owner: str, job_id: str) -> Job:
        """Job of an owner. Raises ApiError if there is none with this id."""
        job = await asyncio.to_thread(self.store.get, owner, job_id) if is_id(job_id) else None
        if job is None:
            raise ApiError(404, f"there is no video {job_id!r}", "not_found", param="video_id")
        return job

    def remove(self, owner: str, job_id: str) -> bool:
        """Deletes a job, if there is one with this id, and its files. Blocks; call it in a thread."""
        job = self.store.remove(owner, job_id)
        if job is None:
            return False
        self.folder.remove(f"results/{job.id}")
        if "upload" in job.request:
            self.folder.remove(job.request["upload"])
        return True

    def to_video(self, job: Job) -> VideoJob:
        """Job in the format of the API."""
        request, failed = job.request, job.status == "failed"
        return VideoJob(
            id=job.id,
            kind=job.kind,  # type: ignore[arg-type]
            model=self.settings.model_name,
            status=job.status,  # type: ignore[arg-type]
            progress=job.progress,
            created_at=job.created_at,
            completed_at=job.completed_at,
            expires_at=job.expires_at,
            prompt=request["prompt"] or None,
            seconds=request.get("seconds"),
            size=request.get("size"),
            num_frames=request.get("num_frames"),
            fps=request.get("fps"),
            seed=request["seed"],
            warnings=request.get("warnings", []),
            error=VideoError(code=job.error_code or "", message=job.error_message or "") if failed else None,
            tokens=job.tokens,
        )

    def _check_length(self, prompt: str, has_picture: bool, num_frames: int) -> None:
        """Raises PromptTooLong if a prompt and the clips of its video exceed the context of the language model."""
        parts: list[EncodedPart] = [[], prompt] if has_picture else [prompt]  # the picture has no codes yet
        self._grammar.begin(TokensRequest(parts, 0, nearest_clips(num_frames, num_frames), has_picture))

    async def _known(self, owner: str, idempotency: Idempotency | None) -> Job | None:
        """Job of an idempotency key. Raises ApiError if the key came with another request."""
        if idempotency is None:
            return None
        job = await asyncio.to_thread(self.store.find, owner, idempotency)
        return None if job is None else _same_request(job, idempotency)

    async def _queue(
        self, owner: str, kind: str, request: dict[str, Any], upload: bytes | None, idempotency: Idempotency | None
    ) -> tuple[Job, bool]:
        """Stores a job and its upload, unless another request with its key was faster. Raises ApiError."""
        job_id, limits = new_id(), self.settings.limits
        if upload is not None:
            request["upload"] = f"uploads/{job_id}.bin"
            await asyncio.to_thread(self.folder.create_bytes, request["upload"], upload)
        limit = limits.open_jobs, limits.open_jobs_per_key
        job = await asyncio.to_thread(self.store.add, owner, kind, request, *limit, job_id, idempotency)
        is_new = job is not None and job.id == job_id
        if upload is not None and not is_new:
            await asyncio.to_thread(self.folder.remove, request["upload"])
        if job is None:
            raise too_many("too many video jobs are open; try again when one has ended", 10, "queue_full")
        if idempotency is not None and not is_new:
            return _same_request(job, idempotency), False
        self._worker.wake()
        return job, True


def _idempotency(
    key: str | None, kind: str, request: VideoRequest | ReconstructRequest, upload: bytes | None
) -> Idempotency | None:
    """Hashes of an idempotency key and of what a request asks for, in whatever form it was sent."""
    if key is None:
        return None
    sent = [kind, request.model_dump(exclude_none=True), None if upload is None else hashlib.sha256(upload).hexdigest()]
    digest = hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()
    return Idempotency(hashlib.sha256(key.encode()).hexdigest(), digest)


def _same_request(job: Job, idempotency: Idempotency) -> Job:
    """Job of an idempotency key. Raises ApiError if it came from another request."""
    if job.request_digest != idempotency.digest:
        message = f"this Idempotency-Key belongs to another request, that of {job.id}; send a new key"
        raise ApiError(422, message, "idempotency_key_reused", param="Idempotency-Key")
    return job


def _failure(job: Job) -> ApiError:
    """Answer to a request that waited for a job which failed."""
    message = job.error_message or ""
    if job.error_code == "invalid_input":
        return bad_request(message, code="invalid_media")
    if job.error_code == "prompt_too_long":
        return bad_request(message, "prompt", "context_length_exceeded")
    if job.error_code == "deadline_exceeded":
        return ApiError(504, message, "deadline_exceeded", kind="timeout_error")
    return ApiError(500, message, job.error_code or "server_error", kind="server_error")
