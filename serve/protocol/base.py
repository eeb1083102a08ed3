"""Parts that all bodies share: strict requests, errors, and values of several calls."""

import re
import time
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

SIZE = r"auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}"


def _check_size(size: str) -> str:
    if not re.fullmatch(SIZE, size, re.ASCII):
        raise ValueError("must be width x height in pixels, such as 256x256, or auto")
    return size


Size = Annotated[
    str,
    AfterValidator(_check_size),
    WithJsonSchema({"type": "string", "pattern": f"^({SIZE})$", "examples": ["256x256"]}),
]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of all random numbers; one is drawn where none is given")]


NeutralValues = dict[str, tuple[Any, ...]]
"""Values of fields by the names of the fields."""


def _document(schema: dict[str, Any], model: "type[Request]") -> None:
    """Adds the fields without effect to the schema of a request."""
    properties = schema.setdefault("properties", {})
    for name in model.ignored:
        properties[name] = {"description": "Accepted, and without effect here"}
    for name, values in model.neutral.items():
        properties[name] = {"enum": [None, *values], "description": "Not supported beyond these values"}


class Request(BaseModel):
    """Part of a request body. Unknown fields are refused, and so are functions that this service lacks."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_document)

    ignored: ClassVar[tuple[str, ...]] = ()
    """Fields that clients send and that change nothing here; any value is accepted."""

    neutral: ClassVar[NeutralValues] = {}
    """Fields for functions that this service lacks, with the values, beside null, that do not ask for them."""

    @model_validator(mode="before")
    @classmethod
    def _drop_fields_without_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, accepted in cls.neutral.items():
            if values.get(name) is not None and values[name] not in accepted:
                raise PydanticCustomError(
                    "not_supported", "{name} is not supported", {"name": name, "accepted": accepted}
                )
        return {name: value for name, value in values.items() if name not in (*cls.ignored, *cls.neutral)}


class ErrorBody(BaseModel):
    """Reason why a request failed."""

    message: str = Field(description="Reason, for people")
    type: str = Field(description="Type of error, as OpenAI names it")
    param: str | None = Field(None, description="Name of the field at fault")
    code: str | None = Field(None, description="Reason, for programs")


class ErrorResponse(BaseModel):
    """Answer to a request that failed."""

    error: ErrorBody


def now() -> int:
    """Current time, in seconds since 1970."""
    return int(time.time())
