"""Bodies of requests for videos, from JSON or from a form, and their description for the API's document."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from .errors import bad_request
from .failures import invalid_request
from .protocol import base
from .protocol.videos import ReconstructRequest, VideoRequest

MAX_FIELDS = 40
"""Most text fields of a form."""

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")

Body = TypeVar("Body", bound=base.Request)


async def video_request(request: Request) -> tuple[VideoRequest, bytes | None]:
    """Body from JSON or from a form, and the uploaded image. Raises ApiError."""
    if _media_type(request) == "application/json":
        try:
            return VideoRequest.model_validate_json(await request.body()), None
        except ValidationError as error:
            raise invalid_request(error.errors()) from None
    return await _form(request, VideoRequest, "input_reference")


async def reconstruct_request(request: Request) -> tuple[ReconstructRequest, bytes]:
    """Body from a form, and the uploaded video. Raises ApiError."""
    fields, video = await _form(request, ReconstructRequest, "video")
    if not video:
        raise bad_request("send the video as the file field `video` of a form", "video")
    return fields, video


async def _form(request: Request, body: type[Body], file_field: str) -> tuple[Body, bytes | None]:
    """Text fields of a form, and its file. Raises ApiError.

    A name such as `input_reference[image_url]` is a field of an object, as OpenAI's client sends it.
    """
    if _media_type(request) not in FORM_TYPES:
        raise bad_request("send JSON or a form (multipart/form-data)", code="unsupported_content_type")
    fields: dict[str, Any] = {}
    data = None
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != file_field:
                    raise bad_request(f"unknown file field: {name}", name, "unknown_parameter")
                data = await value.read()
                continue
            whole, bracket, part = name.removesuffix("]").partition("[")
            if bracket and isinstance(fields.setdefault(whole, {}), dict):
                fields[whole][part] = value
            else:
                fields[name] = value
    try:
        return body.model_validate(fields), data
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


def _media_type(request: Request) -> str:
    """Media type of a body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def video_body() -> dict[str, Any]:
    """Description of the body that `video_request` reads."""
    schema = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    reference = schema.pop("$defs")["ReferenceUrl"]
    picture = {"type": "string", "format": "binary", "description": "Image that the video starts from"}
    return _body(
        {
            "application/json": schema | {"properties": schema["properties"] | {"input_reference": reference}},
            "multipart/form-data": _object(schema["properties"] | {"input_reference": picture}),
        }
    )


def reconstruct_body() -> dict[str, Any]:
    """Description of the body that `reconstruct_request` reads."""
    video = {"type": "string", "format": "binary", "description": "Video file"}
    form = _object(ReconstructRequest.model_json_schema()["properties"] | {"video": video})
    return _body({"multipart/form-data": form | {"required": ["video"]}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}
    }
