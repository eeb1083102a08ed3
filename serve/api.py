"""The HTTP interface: routes, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import DeploymentStatus
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from .content import file_response, page_policy
from .errors import ApiError, bad_request
from .failures import explained, of_details, validation
from .keys import until
from .protocol import (
    ChatRequest,
    ChatResponse,
    Deleted,
    ErrorResponse,
    Health,
    ImageRequest,
    ImageResponse,
    Model,
    ModelList,
    Video,
    VideoList,
    VideoRequest,
)
from .service import Service
from .store import STATUSES, Job, is_id
from .video_jobs import SPRITES, THUMBNAIL, VIDEO

WORKING = (DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING)
POLL_MS = "500"
"""What clients are told to wait between two looks at a job."""

FILES = {"video": (VIDEO, "video/mp4"), "thumbnail": (THUMBNAIL, "image/png"), "spritesheet": (SPRITES, "image/png")}

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": why}
    for status, why in {
        400: "The request cannot be done as it is",
        401: "No known API key",
        403: "The service has no keys, and the request comes from elsewhere",
        404: "No such thing",
        405: "Not with this method",
        413: "The body is too large",
        429: "Too many requests; see Retry-After",
        500: "Something went wrong inside",
        503: "A part of the service is not there",
        504: "The deadline passed",
    }.items()
}


def make_app(service: Service) -> FastAPI:
    """The routes of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.stop()

    app = FastAPI(
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


def _add_error_handlers(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(of_details(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        found = answer(ApiError(error.status_code, str(error.detail), code))
        found.headers.update(error.headers or {})
        return found

    # Starlette hands whatever `Exception` handles on to the server as well, whose log would have the traceback twice.
    @app.middleware("http")
    async def failed(request: Request, call_next: Any) -> Response:
        try:
            response: Response = await call_next(request)
            return response
        except Exception as error:
            found = explained(error)
            if found.status == 500:
                request_id = request.scope["state"].get("request_id")
                logging.getLogger("videolavit.serve").exception("request %s failed", request_id)
            return answer(found)


KEY = HTTPBearer(auto_error=False, description="an API key, where the service asks for one")
"""For the document alone: the entrance looks at the key."""


async def _owner(request: Request, key: Annotated[object, Depends(KEY)]) -> str:
    """Whose key the request has, as the entrance found."""
    owner: str = request.state.owner
    return owner


OWNER = Depends(_owner)


def _deadline(service: Service, request: Request) -> tuple[float, float]:
    """When a request must be done, on the loop's clock, and in how many seconds: the service's, or the client's."""
    most = service.settings.limits.request_seconds
    try:
        seconds = min(most, max(0.001, float(request.headers.get("x-deadline-seconds", most))))
    except ValueError:
        raise bad_request("x-deadline-seconds is a number", "x-deadline-seconds") from None
    return asyncio.get_running_loop().time() + seconds, seconds


def _add_service_routes(app: FastAPI, service: Service) -> None:
    page = files("serve").joinpath("playground.html").read_text()
    policy = page_policy(page)

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/healthz")
    async def healthz() -> Health:
        """The service is alive."""
        return Health(status="ok")

    @app.get("/readyz", responses={503: {"model": Health, "description": "Not yet, or no more"}})
    async def readyz() -> JSONResponse:
        """All its deployments can work."""
        states = await asyncio.to_thread(_deployments)
        ready = bool(states) and all(state in WORKING for state in states.values())
        health = Health(status="ok" if ready else "not ready", deployments=states)
        return JSONResponse(health.model_dump(), 200 if ready else 503)

    # Not as a PlainTextResponse: its errors would be documented as plain text, too.
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(who: str = OWNER) -> Response:
        """Measurements for Prometheus."""
        counts = await asyncio.to_thread(service.store.counts)
        for status in STATUSES:
            service.metrics.jobs.labels(status).set(counts.get(status, 0))
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(who: str = OWNER) -> ModelList:
        """What can be asked."""
        return ModelList(data=[Model(id=service.settings.model_name, created=service.started)])

    @app.get("/v1/models/{model}")
    async def model(model: str, who: str = OWNER) -> Model:
        """One of them."""
        service.check_model(model)
        return Model(id=model, created=service.started)


def _deployments() -> dict[str, str]:
    """State of each deployment of this application."""
    application = serve.get_replica_context().app_name
    found = serve.status().applications.get(application)
    return {} if found is None else {name: state.status.value for name, state in found.deployments.items()}


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def chat(body: ChatRequest, request: Request, who: str = OWNER) -> Any:
        """Answers a question about a picture, a video, or nothing; with `stream`, as it is written."""
        deadline = _deadline(service, request)
        async with until(*deadline):
            order = await service.question(body, who)
            if not body.stream:
                return await service.answer(body, order)
        events = service.stream(body, order, deadline)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.post("/v1/images/generations", response_model_exclude_none=True)
    async def images(body: ImageRequest, request: Request, who: str = OWNER) -> ImageResponse:
        """Pictures from a text."""
        async with until(*_deadline(service, request)):
            return await service.images(body)


def _add_video_routes(app: FastAPI, service: Service) -> None:
    async def found(who: str, job_id: str) -> Job:
        job = await asyncio.to_thread(service.store.get, who, job_id) if is_id(job_id) else None
        if job is None:
            raise ApiError(404, f"there is no video {job_id!r}", "not_found", param="video_id")
        return job

    @app.post("/v1/videos", openapi_extra=_video_body())
    async def create(request: Request, response: Response, who: str = OWNER) -> Video:
        """Queues a video from a text, a picture, or both."""
        async with until(*_deadline(service, request)):
            body, reference = await _video_request(request)
            response.headers["openai-poll-after-ms"] = POLL_MS
            return await service.create_video(who, body, reference)

    @app.post("/v1/videos/reconstruct", openapi_extra=_upload_body())
    async def reconstruct(request: Request, response: Response, who: str = OWNER) -> Video:
        """Queues a video to go through its tokens and back; the job tells how many."""
        async with until(*_deadline(service, request)):
            data, seed = await _upload_request(request)
            response.headers["openai-poll-after-ms"] = POLL_MS
            return await service.create_reconstruction(who, data, seed)

    @app.get("/v1/videos")
    async def page(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        who: str = OWNER,
    ) -> VideoList:
        """The jobs of the caller's key, newest first."""
        known = after is None or is_id(after)
        jobs = await asyncio.to_thread(service.store.page, who, after, limit, order == "asc") if known else None
        if jobs is None:
            raise ApiError(404, f"there is no video {after!r}", "not_found", param="after")
        shown = [service.shown(job) for job in jobs[0]]
        first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
        return VideoList(data=shown, first_id=first, last_id=last, has_more=jobs[1])

    @app.get("/v1/videos/{video_id}")
    async def status(video_id: str, response: Response, who: str = OWNER) -> Video:
        """A job: where it is, and what became of it."""
        response.headers["openai-poll-after-ms"] = POLL_MS
        return service.shown(await found(who, video_id))

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=Response,
        responses={
            200: {"content": {kind: {} for kind in ("video/mp4", "image/png")}},
            206: {"description": "A part of it"},
            416: {"model": ErrorResponse, "description": "The range is not in the file"},
        },
    )
    async def content(
        video_id: str,
        request: Request,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
        who: str = OWNER,
    ) -> Response:
        """The video as mp4, its first keyframe, or its keyframes with their motion as arrows; ranges are served."""
        job = await found(who, video_id)
        if job.result is None:
            reason = job.error_message if job.status == "failed" else f"it is {job.status}"
            raise ApiError(404, f"this video has no content: {reason}", "not_ready", param="video_id")
        name, media_type = FILES[variant]
        return await file_response(service.folder, f"{job.result}/{name}", media_type, request)

    @app.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, who: str = OWNER) -> Deleted:
        """Deletes a job, stops it if it is in work, and removes its files."""
        await found(who, video_id)
        job = await asyncio.to_thread(service.store.remove, who, video_id)
        if job is None:
            raise ApiError(404, f"there is no video {video_id!r}", "not_found", param="video_id")
        for name in (f"results/{job.id}", job.request.get("upload")):
            if name:
                await asyncio.to_thread(service.folder.remove, name)
        return Deleted(id=video_id)


async def _video_request(request: Request) -> tuple[VideoRequest, bytes | None]:
    """A body as JSON or as a form, with the uploaded picture. Raises ApiError."""
    if "json" in request.headers.get("content-type", ""):
        try:
            return VideoRequest.model_validate_json(await request.body()), None
        except ValidationError as error:
            raise validation(error) from None
    fields, uploads = await _form(request, "input_reference")
    try:
        return VideoRequest.model_validate(fields), uploads
    except ValidationError as error:
        raise validation(error) from None


async def _upload_request(request: Request) -> tuple[bytes, int | None]:
    fields, data = await _form(request, "video")
    if set(fields) - {"seed"}:
        unknown = sorted(set(fields) - {"seed"})[0]
        raise bad_request(f"unknown field: {unknown}", unknown, "unknown_parameter")
    if not data:
        raise bad_request("give the video as the file field `video` of a form", "video")
    seed = str(fields.get("seed", "0"))
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise bad_request("seed is a whole number of at least 0", "seed")
    return data, int(seed) if "seed" in fields else None


async def _form(request: Request, file_field: str) -> tuple[dict[str, Any], bytes | None]:
    """The texts of a form, and its one file. Raises ApiError."""
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
    form["input_reference"] = {"type": "string", "format": "binary", "description": "a picture to start from"}
    return _body({"application/json": as_json, "multipart/form-data": _object(form)})


def _upload_body() -> dict[str, Any]:
    video = {"type": "string", "format": "binary", "description": "a video file"}
    seed = {"type": "integer", "minimum": 0}
    return _body({"multipart/form-data": _object({"video": video, "seed": seed}) | {"required": ["video"]}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": one} for kind, one in content.items()}}}
