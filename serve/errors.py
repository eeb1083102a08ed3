"""What goes wrong with a request, in the shape that clients of the OpenAI API know."""

from typing import Any


class ApiError(Exception):
    """A request that is not done, and why.

    Args:
        status: HTTP status.
        message: For the client; names the fix, never a path or a traceback.
        code: Short name of the reason.
        kind: OpenAI's type of error.
        param: The field at fault.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.kind, self.param, self.retry_after = kind, param, retry_after

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The request asks for what cannot be."""
    return ApiError(400, message, code, param=param)


def too_many(message: str, retry_after: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Not now."""
    return ApiError(429, message, code, kind="rate_limit_error", retry_after=retry_after)


def too_late(seconds: float) -> ApiError:
    """The deadline passed."""
    return ApiError(504, f"not finished within {seconds:g} s", "deadline_exceeded", kind="timeout_error")


def unavailable(message: str) -> ApiError:
    """A part of the service failed or is not there; another try may do."""
    return ApiError(503, message, "unavailable", kind="server_error", retry_after=2)
