"""Answers about the service: its models and its state."""

from typing import Literal

from pydantic import BaseModel, Field

from videolavit.models.model_file import Examples


class Model(BaseModel):
    """Served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "videolavit"
    video_seconds: list[str] = Field(
        description="Lengths of the videos that can be asked for, in seconds; an extension of OpenAI's API"
    )
    examples: Examples = Field(description="Prompts that suit the model; an extension of OpenAI's API")


class ModelList(BaseModel):
    """Served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """State of the service and of its deployments."""

    status: Literal["ok", "not ready"]
    deployments: dict[str, str] = Field(default_factory=dict)
