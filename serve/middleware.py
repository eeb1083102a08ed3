"""Around every request: its id, its size limit, a line in the log, and its measurements."""

import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .keys import Gate

log = logging.getLogger("videolavit.serve")
LONGEST_ID = 100
_TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What Prometheus reads at `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "videolavit"}
        self.requests = Counter("requests", "requests by route and status", ["route", "status"], **own)
        self.seconds = Histogram("request_seconds", "time of a request", ["route"], buckets=_TIMES, **own)
        self.in_flight = Gauge("requests_in_flight", "requests in work", **own)
        self.first_text = Histogram("first_text_seconds", "time to the first text of an answer", buckets=_TIMES, **own)
        self.tokens = Counter("tokens", "tokens read and written by chats", ["kind"], **own)
        self.steps = Histogram("step_seconds", "time of a denoising step", ["deployment"], buckets=_TIMES, **own)
        self.decoding = Histogram(
            "decode_seconds", "time from latents to pixels, of a batch", ["deployment"], buckets=_TIMES, **own
        )
        self.batch = Histogram(
            "step_batch", "requests sampled together", ["deployment"], buckets=(1, 2, 4, 8, 16, 32), **own
        )
        self.jobs = Gauge("jobs", "video jobs by status", ["status"], **own)
        self.ended = Counter("jobs_ended", "video jobs that ended", ["status"], **own)


class AdmissionMiddleware:
    """Asks for the key, and takes a place in the service, before anything of a request's body is read.

    The place is given back when the answer has been sent, to its last byte, or cannot be sent any more.

    Args:
        app: What is inside.
        gate: Who may come in.
    """

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(("/v1/", "/metrics")):
            await self._app(scope, receive, send)
            return
        try:
            client = scope.get("client")
            owner = self._gate.owner(Headers(scope=scope).get("authorization"), client[0] if client else "")
            scope.setdefault("state", {})["owner"] = owner
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            async with self._gate.admitted(owner):
                await self._app(scope, receive, send)
        except ApiError as error:  # the app answers its own
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


class RequestMiddleware:
    """The outermost layer.

    Args:
        app: What is inside.
        max_bytes: Of a request's body; more is answered with 413 while it still comes in.
        metrics: To be kept.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app, self._max_bytes, self._metrics = app, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(scope, self._max_bytes, receive, send)
        self._metrics.in_flight.inc()
        try:
            if call.declared > self._max_bytes:
                raise _TooLarge
            await self._app(scope, call.receive, call.send)
            if call.too_large:  # and something inside made another mistake of it
                raise _TooLarge
        except _TooLarge:
            if not call.begun:
                await call.refuse()
        finally:
            self._metrics.in_flight.dec()
            self._tell(scope, call)

    def _tell(self, scope: Scope, call: "_Call") -> None:
        """One line, without what was asked; a status of 499 says that the client left."""
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - call.started
        self._metrics.requests.labels(route, str(call.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        line = {"request_id": call.id, "method": scope["method"], "route": route, "status": call.status}
        log.info(json.dumps(line | {"seconds": round(seconds, 4), "owner": scope.get("state", {}).get("owner")}))


class _TooLarge(Exception):
    """More came than may come."""


class _Call:
    """A request on its way through."""

    def __init__(self, scope: Scope, max_bytes: int, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.id = headers.get(b"x-request-id", "")[:LONGEST_ID]  # Serve's proxy makes one, and sends it back
        scope.setdefault("state", {})["request_id"] = self.id
        length = headers.get(b"content-length", "0")
        self.declared = int(length) if length.isdecimal() else 0
        self.started, self.status = time.monotonic(), 499
        self._max_bytes, self._receive, self._send = max_bytes, receive, send
        self._read, self.too_large, self.begun = 0, False, False

    async def receive(self) -> Message:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        if self._read > self._max_bytes:
            self.too_large = True
            raise _TooLarge
        return message

    async def send(self, message: Message) -> None:
        if self.too_large and not self.begun:
            return  # parsers make a mistake of the client of it; `refuse` says what it was
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
        await self._send(message)

    async def refuse(self) -> None:
        """Answers with 413."""
        error = ApiError(413, f"the body has more than {self._max_bytes >> 20} MiB", "too_large")
        body = json.dumps(error.body).encode()
        self.too_large, self.begun, self.status = False, True, 413
        headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": 413, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
