"""Middleware around all requests: API keys and admission, size limits, request ids, log lines and metrics."""

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .keys import Admission

log = logging.getLogger("videolavit.serve")
LONGEST_ID = 100
"""Characters of a client's request id that are kept."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Metrics that Prometheus reads at `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "videolavit"}
        self.requests = Counter("requests", "requests by route and status", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "duration of a request", ["route"], buckets=_BUCKETS, **own)
        self.in_flight = Gauge("requests_in_flight", "requests in flight", **own)
        self.first_text = Histogram(
            "first_text_seconds", "time to the first text of an answer", buckets=_BUCKETS, **own
        )
        self.tokens = Counter("tokens", "tokens of chats: prompts (read) and completions (written)", ["kind"], **own)
        self.steps = Histogram("step_seconds", "duration of a denoising step", ["deployment"], buckets=_BUCKETS, **own)
        self.decoding = Histogram(
            "decode_seconds", "time to decode the latents of a batch to pixels", ["deployment"], buckets=_BUCKETS, **own
        )
        self.batch = Histogram(
            "step_batch", "batch size of a denoising step", ["deployment"], buckets=(1, 2, 4, 8, 16, 32), **own
        )
        self.jobs = Gauge("jobs", "video jobs by status", ["status"], **own)
        self.ended = Counter("jobs_ended", "video jobs that ended", ["status"], **own)


class AdmissionMiddleware:
    """Checks the API key and the limits on requests in flight, before any of the request's body is received.

    A request is in flight until the last byte of the answer has been sent, or the client has left.

    Args:
        app: Application that handles admitted requests.
        admission: Keys and limits.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(("/v1/", "/metrics")):
            await self._app(scope, receive, send)
            return
        try:
            client = scope.get("client")
            owner = self._admission.authenticate(Headers(scope=scope).get("authorization"), client[0] if client else "")
            scope.setdefault("state", {})["owner"] = owner
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            async with self._admission.admit(owner):
                await self._app(scope, receive, send)
        except ApiError as error:  # errors of admission; the app answers its own
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


class RequestMiddleware:
    """Limits the size of bodies, and logs and measures requests.

    Args:
        app: Application that handles the requests.
        max_bytes: Largest body, in bytes; a larger one is answered with 413 while it is still being received.
        metrics: Metrics to update.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app, self._max_bytes, self._metrics = app, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, self._max_bytes, receive, send)
        self._metrics.in_flight.inc()
        try:
            if exchange.declared_bytes > self._max_bytes:
                raise _TooLarge
            await self._app(scope, exchange.receive, exchange.send)
            if exchange.too_large:  # the application took the end of the body for another error
                raise _TooLarge
        except _TooLarge:
            if not exchange.answered:
                await exchange.refuse()
        finally:
            self._metrics.in_flight.dec()
            self._record(scope, exchange)

    def _record(self, scope: Scope, exchange: "_Exchange") -> None:
        """Writes one log line, without content of the request, and metrics; status 499 is a client that left."""
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - exchange.started
        self._metrics.requests.labels(route, str(exchange.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        line = {"request_id": exchange.id, "method": scope["method"], "route": route, "status": exchange.status}
        log.info(json.dumps(line | {"seconds": round(seconds, 4), "owner": scope.get("state", {}).get("owner")}))


class _TooLarge(Exception):
    """The body is larger than allowed."""


class _Exchange:
    """Request and its answer, as they are received and sent."""

    def __init__(self, scope: Scope, max_bytes: int, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.id = headers.get(b"x-request-id", "")[
            :LONGEST_ID
        ]  # Serve's proxy creates one, and returns it to the client
        scope.setdefault("state", {})["request_id"] = self.id
        length = headers.get(b"content-length", "0")
        self.declared_bytes = int(length) if length.isdecimal() else 0
        self.started, self.status = time.monotonic(), 499
        self._max_bytes, self._receive, self._send = max_bytes, receive, send
        self._received, self.too_large, self.answered = 0, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._max_bytes:
            self.too_large = True
            raise _TooLarge
        return message

    async def send(self, message: Message) -> None:
        if self.too_large and not self.answered:
            return  # parsers report a malformed body; `refuse` sends the reason
        if message["type"] == "http.response.start":
            self.answered, self.status = True, message["status"]
        await self._send(message)

    async def refuse(self) -> None:
        """Answers with 413."""
        error = ApiError(413, f"the body has more than {self._max_bytes >> 20} MiB", "too_large")
        body = json.dumps(error.body).encode()
        self.too_large, self.answered, self.status = False, True, 413
        headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": 413, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
