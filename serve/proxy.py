"""Middleware in the HTTP proxies of Ray Serve, through which requests reach the ingress."""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import unavailable

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Environment variable of Ray that names `middlewares` below."""


def middlewares() -> list[Middleware]:
    """Middlewares of a proxy; called by Ray."""
    return [Middleware(ProxyMiddleware)]


class ProxyMiddleware:
    """Keeps from Serve the headers that it fails on, and turns its own errors into those of this API.

    While the ingress starts, stops or is replaced, Serve answers 404 and 500, or nothing. Clients would take a 404 for
    the end of their job.

    Args:
        app: HTTP proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answered = failed = False

        async def checked(message: Message) -> None:
            nonlocal answered, failed
            if message["type"] == "http.response.start":
                answered, failed = True, _is_from_serve(message)
                if failed:
                    await refuse(Headers(raw=message["headers"]).get("x-request-id"))
            if not failed:
                await send(message)

        async def refuse(request_id: str | None) -> None:
            error = unavailable("the service is starting or stopping; try again")
            headers = error.headers | ({"X-Request-ID": request_id} if request_id else {})
            await JSONResponse(error.body, error.status, headers)(scope, receive, send)

        readable = [(name, value) for name, value in scope["headers"] if _is_text(value)]
        await self._app({**scope, "headers": readable}, receive, checked)
        if not answered:
            await refuse(None)


def _is_from_serve(start: Message) -> bool:
    """True for errors of Serve itself, which are plain text; those of the ingress are JSON."""
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
