"""Routes of the HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from ray.exceptions import RayError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .errors import ApiError, unavailable
from .failures import invalid_request
from .keys import OWNER, deadline_at
from .middleware import AdmissionMiddleware, FailureMiddleware, RequestMiddleware, error_response
from .prompts import check_model
from .protocol.base import ErrorResponse
from .protocol.chat import ChatRequest, ChatResponse
from .protocol.images import ImageRequest, ImageResponse
from .protocol.models import Health, Model, ModelList
from .service import Service
from .store import STATUSES
from .video_routes import VIDEO_HEADERS, add_video_routes

log = logging.getLogger("videolavit.serve")

EXPOSED_HEADERS = [
    "X-Request-ID",
    "Retry-After",
    "WWW-Authenticate",
    "Content-Range",
    "openai-poll-after-ms",
    *VIDEO_HEADERS,
    *(f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")),
]
"""Headers of answers that pages of other origins may read."""

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of the web page and its assets: it loads nothing from elsewhere, and changes with the service."""

PAGE_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

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
    add_video_routes(app, service)
    return app


def add_middleware(app: FastAPI, service: Service) -> None:
    """Adds the middleware around all routes; what is added last comes first."""
    settings, limits = service.settings, service.settings.limits
    app.add_middleware(AdmissionMiddleware, service.admission, limits.request_seconds, settings.cors_origins)
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
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(request.scope, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        called = f"{request.method} {request.scope['path']}"
        code, message = {
            404: ("not_found", f"there is no {called}: calls begin with /v1, and /docs lists them"),
            405: ("method_not_allowed", f"there is no {called}: /docs lists the methods of this path"),
        }.get(error.status_code, ("invalid_request", str(error.detail)))
        response = error_response(request.scope, ApiError(error.status_code, message, code))
        response.headers.update(error.headers or {})
        return response

    app.add_middleware(FailureMiddleware)


def _add_service_routes(app: FastAPI, service: Service) -> None:
    page = files("serve").joinpath("page")
    assets = {file.name: file.read_bytes() for file in page.iterdir()}

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> HTMLResponse:
        base = f'<base href="{html.escape(request.scope.get("root_path", ""))}/">'
        text = assets["index.html"].decode().replace("<head>", f"<head>{base}", 1)
        return HTMLResponse(text, headers=PAGE_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return Response(assets[name], media_type=PAGE_TYPES[PurePath(name).suffix], headers=PAGE_HEADERS)

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
        ready = service.health.is_ready
        health = Health(status="ok" if ready else "not ready", deployments=dict(service.health.deployments))
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
        check_model(model, service.settings)
        return service.describe_model()


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
