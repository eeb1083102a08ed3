"""Checks of what requests for chats, images and videos share."""

import random

from .errors import ApiError, bad_request
from .settings import ServeSettings


def check_model(name: str | None, settings: ServeSettings) -> None:
    """Raises ApiError for a model that is not served."""
    if name is not None and name != settings.model_name:
        message = f"there is no model {name!r}; this service has {settings.model_name!r}"
        raise ApiError(404, message, "model_not_found", param="model")


def check_prompt(prompt: str, settings: ServeSettings, required: bool = True) -> None:
    """Raises ApiError for an empty, too long or invalid prompt."""
    limit = settings.limits.prompt_characters
    if required and not prompt.strip():
        raise bad_request("the prompt is empty", "prompt")
    if len(prompt) > limit:
        raise bad_request(f"the prompt has {len(prompt)} characters; at most {limit} are accepted", "prompt")
    check_text(prompt, "prompt")
    if "\0" in prompt:  # which databases and the metadata of files do not hold
        raise bad_request("the prompt has a NUL character", "prompt")


def check_text(text: str, param: str) -> None:
    """Raises ApiError for strings that JSON can hold and that are not valid text, because of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request("the text has a lone surrogate, which is half a character", param) from None


def given_or_drawn(seed: int | None) -> int:
    """Seed of a request; a random one if none is given."""
    return random.getrandbits(31) if seed is None else seed
