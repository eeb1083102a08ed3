"""What a client is told of an exception: typed causes by name, everything else without a detail."""

from pydantic import ValidationError
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import MediaError

from .errors import ApiError, bad_request, too_many, unavailable

DIED = (RayActorError, DeploymentUnavailableError)
"""A replica is gone; another one may do the same work."""


def root(error: BaseException) -> BaseException:
    """What went wrong, out of the groups and wrappers around it."""
    while True:
        inner: object = None
        if isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        elif isinstance(error, RayTaskError):
            inner = error.cause
        if not isinstance(inner, BaseException):
            return error
        error = inner


def explained(error: BaseException) -> ApiError:
    """The answer to a request that failed."""
    cause = root(error)
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, MediaError):
        return bad_request(str(cause), code="invalid_media")
    if isinstance(cause, PromptTooLong):
        return bad_request(str(cause), code="context_length_exceeded")
    if isinstance(cause, BackPressureError):
        return too_many("too many requests wait; try again", 2, "overloaded")
    if isinstance(cause, (*DIED, TaskCancelledError, RequestCancelledError)):
        return unavailable("a part of the service went away; try again")
    return ApiError(500, "something went wrong inside; try again", "server_error", kind="server_error")


def validation(error: ValidationError) -> ApiError:
    """The answer to a body that is not as the protocol wants it."""
    return of_details(list(error.errors()))


def of_details(details: list[object]) -> ApiError:
    """The first of pydantic's errors, as an answer."""
    first: dict[str, object] = details[0]  # type: ignore[assignment]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]  # type: ignore[attr-defined]
    where = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown field: {where}", where, "unknown_parameter")
    message = str(first["msg"]).removeprefix("Value error, ")
    return bad_request(f"{where}: {message}" if where else message, where)
