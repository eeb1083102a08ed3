"""Errors of requests, in the format of the OpenAI API."""

import math
from typing import Any


class ApiError(Exception):
    """Request that fails, with the answer for the client.

    Args:
        status: HTTP status.
        message: Text for the client; names the fix, never a path or a traceback.
        code: Short name of the reason, for programs.
        kind: Type of error, as OpenAI names it.
        param: Name of the field at fault.
        retry_after: Time after which a retry can succeed, in seconds.
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
        """Body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Error 400: a field has a value that is not accepted."""
    return ApiError(400, message, code, param=param)


def too_many(message: str, retry_after: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Error 429: a limit is reached; a retry can succeed."""
    return ApiError(429, message, code, kind="rate_limit_error", retry_after=retry_after)


def deadline_exceeded(seconds: float) -> ApiError:
    """Error 504: the deadline passed."""
    return ApiError(504, f"not finished within {seconds:g} s", "deadline_exceeded", kind="timeout_error")


def unavailable(message: str) -> ApiError:
    """Error 503: a replica failed or has not started; a retry can succeed."""
    return ApiError(503, message, "unavailable", kind="server_error", retry_after=2)
