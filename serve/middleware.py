"""Middleware around all requests: API keys and admission, size limits, request ids, log lines and metrics."""

import asyncio
import json
import logging
import time
from collections.abc import Collection, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .browsers import check_browser
from .errors import ApiError, bad_request
from .failures import api_error, private_traceback
from .keys import Admission
from .logs import RequestLine

log = logging.getLogger("videolavit.serve")
LONGEST_ID = 100
"""Characters of a client's request id that are kept."""

MARKS = (b"[", b"{", b",")
MAX_MARKS = 50_000
"""Most brackets and commas of a body in JSON. Files in base64 have none, and texts few."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


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
        self.first_token = Histogram(
            "time_to_first_token_seconds",
            "time until the first token, from the queue",
            buckets=_BUCKETS,
            **own,
        )
        self.each_token = Histogram(
            "time_per_output_token_seconds", "mean time between two tokens of an answer", buckets=_TOKEN_BUCKETS, **own
        )
        self.running = Gauge("language_model_requests_running", "requests in the batches of the language model", **own)
        self.waiting = Gauge("language_model_requests_waiting", "requests that wait for the language model", **own)
        self.tokens = Counter("tokens", "tokens of chats: prompts (read) and completions (written)", ["kind"], **own)
        self.cached_tokens = Counter(
            "prefix_cache_hit_tokens", "tokens of prompts of chats that were in the prefix cache", **own
        )
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
    """Checks the API key and the limits of requests, before the application sees them.

    A request is in flight from the moment its body is there until the last byte of the answer has been sent, or the
    client has left. Its deadline begins with its headers.

    Args:
        app: Application that handles admitted requests.
        admission: Keys and limits.
        longest_seconds: Deadline of a request, in seconds; the client may shorten it.
        origins: Origins whose pages may call the service.
    """

    def __init__(
        self, app: ASGIApp, admission: Admission, longest_seconds: float, origins: Collection[str] = ()
    ) -> None:
        self._app, self._admission, self._longest_seconds = app, admission, longest_seconds
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _route_path(scope).startswith(("/v1/", "/metrics")):
            await self._app(scope, receive, send)
            return
        headers, state, admission = Headers(scope=scope), scope.setdefault("state", {}), self._admission
        received = scope["method"] != "POST"  # bodies of other methods are not read

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] == "POST" and "owner" in state:
                MutableHeaders(scope=message).update(admission.rate_headers(state["owner"]))
            await send(message)

        try:
            check_browser(headers, admission.keys is not None, self._origins)
            client = scope.get("client")
            owner = state["owner"] = admission.authenticate(headers.get("authorization"), client[0] if client else "")
            if received:
                with admission.read(owner):
                    await self._app(scope, receive, send)
                return
            deadline = state["deadline"] = self._deadline(headers)
            async with admission.admit(owner), admission.body(receive, *deadline) as messages:
                received = True
                if messages[-1]["type"] == "http.disconnect":
                    return
                _check_parts(headers, messages)
                async with admission.place():

                    async def receive_again() -> Message:
                        return messages.popleft() if messages else await receive()

                    await self._app(scope, receive_again, send_with_limits)
        except ApiError as error:  # errors of admission; the app answers its own
            state["reason"] = error.code
            closing = {} if received else {"Connection": "close"}  # the rest of the body is not read
            response = JSONResponse(error.body, error.status, error.headers | closing)
            await response(scope, receive, send_with_limits)

    def _deadline(self, headers: Headers) -> tuple[float, float]:
        """Deadline of a request, on the loop's clock, and in seconds from now. Raises ApiError."""
        given = headers.get("x-deadline-seconds", self._longest_seconds)
        try:
            seconds = min(self._longest_seconds, max(0.001, float(given)))
        except ValueError:
            raise bad_request("x-deadline-seconds must be a number", "x-deadline-seconds") from None
        return asyncio.get_running_loop().time() + seconds, seconds


def _check_parts(headers: Headers, messages: Iterable[Message]) -> None:
    """Raises ApiError for JSON of so many parts that reading it would stop the service: a million take seconds."""
    if "json" not in headers.get("content-type", "").lower():  # the case has no meaning
        return
    parts = sum(message.get("body", b"").count(mark) for message in messages for mark in MARKS)
    if parts > MAX_MARKS:
        raise bad_request("the body has too many fields and items", code="too_large")


def _route_path(scope: Scope) -> str:
    """Path of a request without the prefix of a proxy in front of the service."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class RequestMiddleware:
    """Limits the size of bodies, answers HEAD as GET without the body, and logs and measures requests.

    Args:
        app: Application that handles the requests.
        max_bytes: Largest body, in bytes; a larger one is answered with 413 while it is still being received.
        metrics: Metrics to update.
        answering: Requests that are being answered, a future for each; kept up to date.
        log_requests: Write a log line for each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        metrics: Metrics,
        answering: set["asyncio.Future[None]"],
        log_requests: bool,
    ) -> None:
        self._app, self._max_bytes, self._metrics = app, max_bytes, metrics
        self._answering, self._log_requests = answering, log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # the server leaves out the body
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(scope, self._max_bytes, receive, send)
        self._metrics.in_flight.inc()
        ended = asyncio.get_running_loop().create_future()
        self._answering.add(ended)
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
            self._answering.discard(ended)
            ended.set_result(None)
            self._record(scope, method, exchange)

    def _record(self, scope: Scope, method: str, exchange: "_Exchange") -> None:
        """Writes a log line and metrics."""
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - exchange.started
        self._metrics.requests.labels(route, str(exchange.status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._log_requests:
            state = scope["state"]
            reason, owner = state.get("reason"), state.get("owner")
            log.info(
                RequestLine(
                    exchange.id, method, scope["path"], route, exchange.status, round(seconds, 4), reason, owner
                )
            )


class FailureMiddleware:
    """Answers what nothing else has caught, and logs it where it is a fault of the service.

    A handler of `Exception` would not do: Starlette raises the error again, and the server logs it a second time.

    Args:
        app: Routes with their handlers of errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = answered or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or answered:
                raise
            answer = api_error(error)
            if answer.status == 500:
                log.error("request %s failed: %s", scope["state"].get("request_id"), private_traceback(error))
            await error_response(scope, answer)(scope, receive, send)


def error_response(scope: Scope, error: ApiError) -> JSONResponse:
    """Makes the answer of an error, and notes its code for the line of the request."""
    scope["state"]["reason"] = error.code
    return JSONResponse(error.body, error.status, error.headers)


class _TooLarge(Exception):
    """The body is larger than allowed."""


class _Exchange:
    """Request and its answer, as they are received and sent."""

    def __init__(self, scope: Scope, max_bytes: int, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        # Serve's proxy creates one, and returns it to the client
        self.id = headers.get(b"x-request-id", "")[:LONGEST_ID]
        self._state = scope.setdefault("state", {})
        self._state["request_id"] = self.id
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
            MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
        await self._send(message)

    async def refuse(self) -> None:
        """Answers with 413."""
        error = ApiError(413, f"the body has more than {self._max_bytes >> 20} MiB", "too_large")
        body = json.dumps(error.body).encode()
        self.too_large, self.answered, self.status = False, True, 413
        self._state["reason"] = error.code
        headers: list[Any] = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await self._send({"type": "http.response.start", "status": 413, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
