"""Exceptions to answers: known causes with their message, all others without details."""

from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import MediaError

from .errors import ApiError, bad_request, too_many, unavailable

REPLICA_DIED = (RayActorError, DeploymentUnavailableError)
"""Errors after which another replica may do the same work."""


def root_cause(error: BaseException) -> BaseException:
    """Exception inside of exception groups and Ray's wrappers."""
    while True:
        inner: object = None
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        elif isinstance(error, RayTaskError):
            inner = error.cause
        if not isinstance(inner, BaseException):
            return error
        error = inner


def api_error(error: BaseException) -> ApiError:
    """Answer to a request that failed with an exception."""
    cause = root_cause(error)
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, MediaError):
        return bad_request(str(cause), code="invalid_media")
    if isinstance(cause, PromptTooLong):
        return bad_request(str(cause), code="context_length_exceeded")
    if isinstance(cause, BackPressureError):
        return too_many("too many requests are queued; try again", 2, "overloaded")
    if isinstance(cause, (*REPLICA_DIED, TaskCancelledError, RequestCancelledError)):
        return unavailable("a replica of the service stopped; try again")
    return ApiError(500, "internal error; try again", "server_error", kind="server_error")


def invalid_request(details: Sequence[Any]) -> ApiError:
    """Answer to a request that does not fit the protocol, from pydantic's list of errors."""
    first = details[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown field: {field}", field, "unknown_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return bad_request(f"{field}: {message}" if field else message, field)
