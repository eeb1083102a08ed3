"""Exceptions to answers: known causes with their message, all others without details."""

import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from sqlalchemy.exc import SQLAlchemyError

from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import MediaError
from videolavit.records.storage import StorageError

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
    if isinstance(cause, (SQLAlchemyError, StorageError, OSError)):
        return unavailable("the storage of the service does not answer, or is full; try again")
    return ApiError(500, "internal error; try again", "server_error", kind="server_error")


def private_traceback(error: BaseException) -> str:
    """Types and places of an exception and of those inside of it. Messages are left out: they may hold prompts."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        places = " < ".join(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(frames))
        parts.append(f"{type(seen).__name__} at {places or 'an unknown place'}")
        inner = root_cause(seen)
        seen = inner if inner is not seen else seen.__cause__ or seen.__context__
    return "; from ".join(parts)


WORDS = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_type": "must be a text",
    "string_unicode": "must be a text without half characters (lone surrogates)",
    "too_long": "must have at most {max_length} items, not {actual_length}",
    "too_short": "must have at least {min_length} item",
    "union_tag_not_found": "needs a type",
}
"""Words for a wrong field, by the type of pydantic's error."""


def invalid_request(details: Sequence[Any]) -> ApiError:
    """Answer to a request that does not fit the protocol, from pydantic's list of errors."""
    first = details[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        reason = context["error"].partition(" at line ")[0]  # a place within text that a client made says little
        return bad_request(f"the body is not valid JSON: {reason}", code="invalid_json")
    field = _field(first["loc"])
    if kind == "extra_forbidden":
        return bad_request(f"unknown field: {field}", field, "unknown_parameter")
    if kind == "not_supported":
        field = f"{field}.{context['name']}" if field else context["name"]
        values = " or ".join(json.dumps(value) for value in context["accepted"])
        fix = f"leave it out, or send {values}" if values else "leave it out"
        return bad_request(f"{field} is not supported: {fix}", field, "unsupported_value")
    if kind == "union_tag_invalid":
        message = f"{field}: the type '{context['tag']}' is not supported; send {context['expected_tags']}"
        return bad_request(message, field, "unsupported_value")
    words = str(context["error"]) if kind == "value_error" else WORDS.get(kind, "is not valid").format(**context)
    return bad_request(f"{field or 'the body'} {words}", field)


def _field(place: Sequence[str | int]) -> str | None:
    """Name of a field as in OpenAI's errors, such as `messages[0].content`; None for the body."""
    name = ""
    for number, part in enumerate(place):
        if isinstance(part, int):
            name += f"[{part}]"
        elif number >= 2 and place[number - 2] == "content":
            continue  # the type of a part of a message, by which pydantic chose its model
        elif number or part not in ("body", "query", "path", "header"):
            name += f".{part}" if name else part
    return name or None
