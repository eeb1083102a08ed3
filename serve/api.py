"""Routes of the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import DeploymentStatus
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .content import file_response, page_policy
from .errors import ApiError, bad_request, unavailable
from .failures import api_error, invalid_request
from .keys import deadline_at
from .middleware import AdmissionMiddleware, RequestMiddleware
from .protocol.base import ErrorResponse
from .protocol.chat import ChatRequest, ChatResponse
from .protocol.images import ImageRequest, ImageResponse
from .protocol.models import Health, Model, ModelList
from .protocol.videos import Deleted, VideoJob, VideoList, VideoRequest
from .service import Service
from .store import STATUSES, Job, is_id
from .video_jobs import SPRITES_FILE, THUMBNAIL_FILE, VIDEO_FILE

READY_STATES = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)
EXPOSED_HEADERS = [
    "X-Request-ID",
    "Retry-After",
    "WWW-Authenticate",
    "Content-Range",
    "openai-poll-after-ms",
    *(f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")),
]
"""Headers of answers that pages of other origins may read."""

POLL_MS = "500"
"""Time that clients should wait between two requests for the state of a job, in milliseconds."""

FILES = {
    "video": (VIDEO_FILE, "video/mp4"),
    "thumbnail": (THUMBNAIL_FILE, "image/png"),
    "spritesheet": (SPRITES_FILE, "image/png"),
}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": why}
    for status, why in {
        400: "Invalid request",
        401: "Unknown API key",
        403: "Service without keys, and a request from another machine",
        404: "Not found",
        405: "Method not allowed",
        413: "Body too large",
        429: "Too many requests; see the Retry-After header",
        500: "Internal error",
        503: "Replica stopped or not started",
        504: "Deadline exceeded",
    }.items()
}


def make_app(service: Service) -> FastAPI:
    """Application with the routes of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    # with assets of its own for the documentation
    app: FastAPI = FastAPIOffline(
        title="videolavit",
        summary="Understands and generates images and videos; speaks the OpenAI API.",
        lifespan=lifespan,
        responses=_ERRORS,
        redoc_url=None,
    )
    _add_error_handlers(app)
    _add_service_routes(app, service)
    _add_model_routes(app, service)
    _add_video_routes(app, service)
    return app


def add_middleware(app: FastAPI, service: Service) -> None:
    """Adds the middleware around all routes; what is added last comes first."""
    settings, limits = service.settings, service.settings.limits
    app.add_middleware(AdmissionMiddleware, service.admission, limits.request_seconds)
    app.add_middleware(
        RequestMiddleware,
        max_bytes=limits.body_megabytes << 20,
        metrics=service.metrics,
        answering=service.answering,
        log_requests=settings.log_requests,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )


def _add_error_handlers(app: FastAPI) -> None:
    def error_response(request: Request, error: ApiError) -> JSONResponse:
        request.scope["state"]["reason"] = error.code
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(request, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        response = error_response(request, ApiError(error.status_code, str(error.detail), code))
        response.headers.update(error.headers or {})
        return response

    # A handler of `Exception` would not do: Starlette raises the error again, and the server logs it a second time.
    @app.middleware("http")
    async def failed(request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
            return response
        except Exception as error:
            answer = api_error(error)
            if answer.status == 500:
                request_id = request.scope["state"].get("request_id")
                logging.getLogger("videolavit.serve").exception("request %s failed", request_id)
            return error_response(request, answer)


KEY = HTTPBearer(auto_error=False, description="API key; not needed for a service without keys")
"""Documents the key, which the admission middleware checks."""


async def _owner(request: Request, key: Annotated[object, Depends(KEY)]) -> str:
    """Owner of the request's key, as found by the admission middleware."""
    owner: str = request.state.owner
    return owner


OWNER = Depends(_owner)


def _add_service_routes(app: FastAPI, service: Service) -> None:
    page = files("serve").joinpath("playground.html").read_text()
    policy = page_policy(page)

    @app.get("/", include_in_schema=False)
    async def playground(request: Request) -> HTMLResponse:
        base = f'<base href="{html.escape(request.scope.get("root_path", ""))}/">'
        return HTMLResponse(page.replace("<head>", f"<head>{base}", 1), headers={"Content-Security-Policy": policy})

    @app.get("/health", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Tells that the service is alive."""
        return Health(status="ok")

    @app.get("/readyz", responses={503: {"model": Health, "description": "Not ready"}})
    async def readyz() -> JSONResponse:
        """Tells whether all deployments are ready, and the service is not stopping."""
        if service.admission.closed:
            health = Health(status="not ready", deployments={})
            return JSONResponse(health.model_dump(), 503, unavailable("").headers)
        states = await asyncio.to_thread(_deployments)
        ready = bool(states) and all(state in READY_STATES for state in states.values())
        health = Health(status="ok" if ready else "not ready", deployments=states)
        return JSONResponse(health.model_dump(), 200 if ready else 503)

    # not a PlainTextResponse, with which errors would be documented as plain text as well
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(owner: str = OWNER) -> Response:
        """Metrics for Prometheus."""
        counts = await asyncio.to_thread(service.store.counts)
        for status in STATUSES:
            service.metrics.jobs.labels(status).set(counts.get(status, 0))
        with contextlib.suppress(RayError, RuntimeError, TimeoutError):  # deployments may be starting
            running, waiting = await service.graph.language_model_load()
            service.metrics.running.set(running)
            service.metrics.waiting.set(waiting)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(owner: str = OWNER) -> ModelList:
        """Lists the served models."""
        return ModelList(data=[service.describe_model()])

    @app.get("/v1/models/{model}")
    async def model(model: str, owner: str = OWNER) -> Model:
        """Describes a served model."""
        service.check_model(model)
        return service.describe_model()


def _deployments() -> dict[str, str]:
    """State of each deployment of this application, by name."""
    application = serve.get_replica_context().app_name
    found = serve.status().applications.get(application)
    return {} if found is None else {name: state.status.value for name, state in found.deployments.items()}


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def chat(body: ChatRequest, request: Request, owner: str = OWNER) -> Any:
        """Answers a question, which may be about an image or a video; with `stream`, while the answer is generated."""
        deadline = request.state.deadline
        async with deadline_at(*deadline):
            answer_request = await service.answer_request(body, owner)
            if not body.stream:
                return await service.answer(body, answer_request)
        events = service.stream(body, answer_request, deadline)
        first = await anext(events)  # an error before it is answered with its HTTP status

        async def all_events() -> AsyncIterator[str]:
            async with aclosing(events):
                yield first
                async for event in events:
                    yield event

        return StreamingResponse(all_events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.post("/v1/images/generations", response_model_exclude_none=True)
    async def images(body: ImageRequest, request: Request, owner: str = OWNER) -> ImageResponse:
        """Generates images from a text."""
        async with deadline_at(*request.state.deadline):
            return await service.images(body)


def _add_video_routes(app: FastAPI, service: Service) -> None:
    async def find_job(owner: str, job_id: str) -> Job:
        job = await asyncio.to_thread(service.store.get, owner, job_id) if is_id(job_id) else None
        if job is None:
            raise ApiError(404, f"there is no video {job_id!r}", "not_found", param="video_id")
        return job

    @app.post("/v1/videos", openapi_extra=_video_body())
    async def create(request: Request, response: Response, owner: str = OWNER) -> VideoJob:
        """Queues a job that generates a video from a text, an image, or both."""
        async with deadline_at(*request.state.deadline):
            body, reference = await _video_request(request)
            response.headers["openai-poll-after-ms"] = POLL_MS
            return await service.create_video(owner, body, reference)

    @app.post("/v1/videos/reconstruct", openapi_extra=_upload_body())
    async def reconstruct(request: Request, response: Response, owner: str = OWNER) -> VideoJob:
        """Queues a job that tokenizes a video and reconstructs it from the tokens."""
        async with deadline_at(*request.state.deadline):
            data, seed = await _upload_request(request)
            response.headers["openai-poll-after-ms"] = POLL_MS
            return await service.create_reconstruction(owner, data, seed)

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
        videos = [service.to_video(job) for job in jobs[0]]
        first, last = (videos[0].id, videos[-1].id) if videos else (None, None)
        return VideoList(data=videos, first_id=first, last_id=last, has_more=jobs[1])

    @app.get("/v1/videos/{video_id}")
    async def status(video_id: str, response: Response, owner: str = OWNER) -> VideoJob:
        """Returns the state of a video job."""
        response.headers["openai-poll-after-ms"] = POLL_MS
        return service.to_video(await find_job(owner, video_id))

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
        job = await find_job(owner, video_id)
        if job.result is None:
            reason = job.error_message if job.status == "failed" else f"it is {job.status}"
            raise ApiError(404, f"this video has no content: {reason}", "not_ready", param="video_id")
        name, media_type = FILES[variant]
        return await file_response(service.folder, f"{job.result}/{name}", media_type, request)

    @app.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, owner: str = OWNER) -> Deleted:
        """Deletes a video job and its files; stops the job if it is in progress."""
        await find_job(owner, video_id)
        job = await asyncio.to_thread(service.store.remove, owner, video_id)
        if job is None:
            raise ApiError(404, f"there is no video {video_id!r}", "not_found", param="video_id")
        for name in (f"results/{job.id}", job.request.get("upload")):
            if name:
                await asyncio.to_thread(service.folder.remove, name)
        return Deleted(id=video_id)


async def _video_request(request: Request) -> tuple[VideoRequest, bytes | None]:
    """Body from JSON or from a form, and the uploaded image. Raises ApiError."""
    if "json" in request.headers.get("content-type", ""):
        try:
            return VideoRequest.model_validate_json(await request.body()), None
        except ValidationError as error:
            raise invalid_request(error.errors()) from None
    fields, uploads = await _form(request, "input_reference")
    try:
        return VideoRequest.model_validate(fields), uploads
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


async def _upload_request(request: Request) -> tuple[bytes, int | None]:
    """Uploaded video, and the seed, from a form. Raises ApiError."""
    fields, data = await _form(request, "video")
    if set(fields) - {"seed"}:
        unknown = sorted(set(fields) - {"seed"})[0]
        raise bad_request(f"unknown field: {unknown}", unknown, "unknown_parameter")
    if not data:
        raise bad_request("send the video as the file field `video` of a form", "video")
    seed = str(fields.get("seed", "0"))
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise bad_request("seed must be a whole number of at least 0", "seed")
    return data, int(seed) if "seed" in fields else None


async def _form(request: Request, file_field: str) -> tuple[dict[str, Any], bytes | None]:
    """Text fields of a form, and its file. Raises ApiError."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise bad_request("send JSON or a form (multipart/form-data)", code="unsupported_content_type")
    fields: dict[str, Any] = {}
    data = None
    async with request.form(max_files=1, max_fields=20) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != file_field:
                    raise bad_request(f"unknown file field: {name}", name, "unknown_parameter")
                data = await value.read()
            else:
                fields[name] = value
    return fields, data


def _video_body() -> dict[str, Any]:
    schema = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs")
    as_json = schema | {"properties": schema["properties"] | {"input_reference": definitions["ReferenceUrl"]}}
    form = {name: value for name, value in schema["properties"].items() if name != "input_reference"}
    form["input_reference"] = {"type": "string", "format": "binary", "description": "Image that the video starts from"}
    return _body({"application/json": as_json, "multipart/form-data": _object(form)})


def _upload_body() -> dict[str, Any]:
    video = {"type": "string", "format": "binary", "description": "Video file"}
    seed = {"type": "integer", "minimum": 0}
    return _body({"multipart/form-data": _object({"video": video, "seed": seed}) | {"required": ["video"]}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }
