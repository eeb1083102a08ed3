"""Routes of the HTTP API for videos."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import Response

from .content import file_response
from .errors import ApiError
from .forms import reconstruct_body, reconstruct_request, video_body, video_request
from .keys import OWNER, deadline_at
from .protocol.base import ErrorResponse
from .protocol.videos import Deleted, VideoJob, VideoList
from .service import Service
from .store import is_id
from .video_jobs import SPRITES_FILE, THUMBNAIL_FILE, VIDEO_FILE

POLL_MS = "500"
"""Time that clients should wait between two requests for the state of a job, in milliseconds."""

FILES = {
    "video": (VIDEO_FILE, "video/mp4"),
    "thumbnail": (THUMBNAIL_FILE, "image/png"),
    "spritesheet": (SPRITES_FILE, "image/png"),
}

VIDEO_HEADERS = {
    "X-Video-ID": "id",
    "X-Video-Seed": "seed",
    "X-Video-Seconds": "seconds",
    "X-Video-Size": "size",
    "X-Video-Frames": "num_frames",
    "X-Video-FPS": "fps",
    "X-Video-Warnings": "warnings",
}
"""Headers of an answer that is a video, with the fields of its job that they tell."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Name of the client's own for this request: repeating the request with it gives the same job",
    ),
]

_REUSED: dict[int | str, dict[str, Any]] = {
    422: {"model": ErrorResponse, "description": "Idempotency-Key of another request"}
}


def add_video_routes(app: FastAPI, service: Service) -> None:
    """Adds the routes under `/v1/videos`."""

    @app.post("/v1/videos", openapi_extra=video_body(), responses=_REUSED)
    async def create(
        request: Request, response: Response, idempotency_key: IdempotencyKey = None, owner: str = OWNER
    ) -> VideoJob:
        """Queues a job that generates a video from a text, an image, or both.

        The job tells what its file will hold: lengths and sizes that the model cannot make are rounded to the nearest
        that it can, and `warnings` says so.
        """
        async with deadline_at(*request.state.deadline):
            job, _ = await service.videos.create(owner, *await video_request(request), idempotency_key)
            response.headers["openai-poll-after-ms"] = POLL_MS
            return service.videos.to_video(job)

    @app.post(
        "/v1/videos/sync",
        openapi_extra=video_body(),
        response_class=Response,
        responses=_REUSED | {200: {"description": "The video", "content": {"video/mp4": {}}}},
    )
    async def make(request: Request, idempotency_key: IdempotencyKey = None, owner: str = OWNER) -> Response:
        """Generates a video and answers with it; the headers `X-Video-...` tell its id, its seed and what it holds.

        The request waits in the queue of the video jobs, and its job is deleted when the client leaves or the deadline
        passes.
        """
        async with deadline_at(*request.state.deadline):
            job = await service.videos.make(owner, *await video_request(request), idempotency_key)
            response = await file_response(service.folder, f"{job.result}/{VIDEO_FILE}", "video/mp4", request)
        told = service.videos.to_video(job)
        facts = told.model_dump() | {"warnings": "; ".join(told.warnings) or None}
        response.headers.update(
            {name: str(facts[one]) for name, one in VIDEO_HEADERS.items() if facts[one] is not None}
        )
        return response

    @app.post("/v1/videos/reconstruct", openapi_extra=reconstruct_body(), responses=_REUSED)
    async def reconstruct(
        request: Request, response: Response, idempotency_key: IdempotencyKey = None, owner: str = OWNER
    ) -> VideoJob:
        """Queues a job that tokenizes a video and reconstructs it from the tokens.

        The job tells the length and size of its file as soon as the video has been decoded.
        """
        async with deadline_at(*request.state.deadline):
            job, _ = await service.videos.create_reconstruction(
                owner, *await reconstruct_request(request), idempotency_key
            )
            response.headers["openai-poll-after-ms"] = POLL_MS
            return service.videos.to_video(job)

    @app.get("/v1/videos")
    async def page(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = OWNER,
    ) -> VideoList:
        """Lists the video jobs of the key, newest first."""
        valid = after is None or is_id(after)
        jobs = await asyncio.to_thread(service.store.page, owner, after, limit, order == "asc") if valid else None
        if jobs is None:
            raise ApiError(404, f"there is no video {after!r}", "not_found", param="after")
        listed = [service.videos.to_video(job) for job in jobs[0]]
        first, last = (listed[0].id, listed[-1].id) if listed else (None, None)
        return VideoList(data=listed, first_id=first, last_id=last, has_more=jobs[1])

    @app.get("/v1/videos/{video_id}")
    async def status(video_id: str, response: Response, owner: str = OWNER) -> VideoJob:
        """Returns the state of a video job."""
        response.headers["openai-poll-after-ms"] = POLL_MS
        return service.videos.to_video(await service.videos.find(owner, video_id))

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=Response,
        responses={
            200: {"content": {kind: {} for kind in ("video/mp4", "image/png")}},
            206: {"description": "Requested range"},
            416: {"model": ErrorResponse, "description": "Range not in the file"},
        },
    )
    async def content(
        video_id: str,
        request: Request,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
        owner: str = OWNER,
    ) -> Response:
        """Returns the video as mp4, its first keyframe, or its keyframes with motion arrows; supports ranges."""
        job = await service.videos.find(owner, video_id)
        if job.result is None:
            reason = job.error_message if job.status == "failed" else f"it is {job.status}"
            raise ApiError(404, f"this video has no content: {reason}", "not_ready", param="video_id")
        name, media_type = FILES[variant]
        return await file_response(service.folder, f"{job.result}/{name}", media_type, request)

    @app.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, owner: str = OWNER) -> Deleted:
        """Deletes a video job and its files; stops the job if it is in progress."""
        await service.videos.find(owner, video_id)
        await asyncio.to_thread(service.videos.remove, owner, video_id)
        return Deleted(id=video_id)
