"""Bodies of requests: fields of OpenAI's API without effect here, and the words of errors."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from openai.types import image_generate_params, image_input_reference_param, video_create_params
from openai.types.chat import (
    ChatCompletionContentPartParam,
    ChatCompletionMessage,
    ChatCompletionMessageParam,
    chat_completion_content_part_image_param,
    chat_completion_content_part_param,
    chat_completion_content_part_refusal_param,
    chat_completion_stream_options_param,
    completion_create_params,
)
from pydantic import TypeAdapter, ValidationError

from serve.errors import ApiError
from serve.failures import invalid_request
from serve.protocol.base import Request
from serve.protocol.chat import (
    ChatRequest,
    FileData,
    FilePart,
    ImagePart,
    ImageUrl,
    Message,
    RefusalPart,
    StreamOptions,
    TextPart,
)
from serve.protocol.images import ImageRequest
from serve.protocol.videos import ReconstructRequest, ReferenceUrl, VideoRequest

PIXEL = {"url": "data:image/png;base64,AAAA"}


def chat(*parts: Any, **fields: Any) -> dict[str, Any]:
    """Body of a chat whose message has some parts."""
    return {"model": "m", "messages": [{"role": "user", "content": list(parts) or "hello"}]} | fields


def refusal(body: dict[str, Any], model: type[Request] = ChatRequest) -> ApiError:
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    return invalid_request(error.value.errors())


@pytest.mark.parametrize(
    ("model", "openai_type"),
    [
        (ChatRequest, completion_create_params.CompletionCreateParamsNonStreaming),
        (ChatRequest, completion_create_params.CompletionCreateParamsStreaming),
        (StreamOptions, chat_completion_stream_options_param.ChatCompletionStreamOptionsParam),
        *((Message, speaker) for speaker in get_args(ChatCompletionMessageParam)),
        (Message, ChatCompletionMessage),
        (ImageUrl, chat_completion_content_part_image_param.ImageURL),
        (FileData, chat_completion_content_part_param.FileFile),
        (RefusalPart, chat_completion_content_part_refusal_param.ChatCompletionContentPartRefusalParam),
        (ImageRequest, image_generate_params.ImageGenerateParamsNonStreaming),
        (ImageRequest, image_generate_params.ImageGenerateParamsStreaming),
        (VideoRequest, video_create_params.VideoCreateParams),
        (ReferenceUrl, image_input_reference_param.ImageInputReferenceParam),
    ],
)
def test_every_field_of_openai_s_client_is_known(model: type[Request], openai_type: Any) -> None:
    fields = set(getattr(openai_type, "model_fields", openai_type.__annotations__))
    assert len(fields) > 1
    assert fields <= {*model.model_fields, *model.ignored, *model.neutral}


def test_every_part_of_a_message_of_openai_s_client_is_known() -> None:
    own = {"text": TextPart, "image_url": ImagePart, "file": FilePart}
    unknown = {}
    for openai_type in get_args(ChatCompletionContentPartParam):
        (kind,) = get_args(get_type_hints(openai_type)["type"])
        if kind in own:
            model = own[kind]
            assert set(openai_type.__annotations__) <= {*model.model_fields, *model.ignored, *model.neutral}
        else:
            unknown[kind] = refusal(chat({"type": kind, kind: {}})).message
    assert list(unknown) == ["input_audio"]
    assert "the type 'input_audio' is not supported" in unknown["input_audio"]


@pytest.mark.parametrize(
    ("model", "body"),
    [(ChatRequest, chat()), (ImageRequest, {"prompt": "x"}), (VideoRequest, {"prompt": "x"}), (ReconstructRequest, {})],
)
def test_neutral_values_are_accepted_and_others_are_not_supported(model: type[Request], body: dict[str, Any]) -> None:
    for name, values in model.neutral.items():
        for value in (None, *values):
            model.model_validate(body | {name: value})
        error = refusal(body | {name: {"other": 1}}, model)
        assert (error.param, error.code) == (name, "unsupported_value")
        assert error.message.startswith(f"{name} is not supported: leave it out")
        assert all(json.dumps(value) in error.message for value in values)
    for name in model.ignored:
        model.model_validate(body | {name: "anything"})


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        (
            chat({"type": "input_audio"}),
            "messages[0].content[0]",
            "the type 'input_audio' is not supported; send 'text'",
        ),
        (chat({"text": "x"}), "messages[0].content[0]", "needs a type"),
        (chat({"type": "text", "text": 3}), "messages[0].content[0].text", "must be a text"),
        (chat({"type": "text", "text": "x", "x": 1}), "messages[0].content[0].x", "unknown field: messages"),
        (chat({"type": "image_url", "image_url": "x"}), "messages[0].content[0].image_url", "must be an object"),
        (chat({"type": "file", "file": {"file_id": "f"}}), "messages[0].content[0].file.file_id", "not supported"),
        (chat({"type": "video_url", "video_url": PIXEL, "max_frames": 0}), "messages[0].content[0].max_frames", "1"),
        (chat() | {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a text, or a list of parts"),
        (chat() | {"messages": [{"role": "user"}]}, "messages[0]", "needs content"),
        (chat() | {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "must be 'system', 'developer'"),
        (chat() | {"messages": ["x"]}, "messages[0]", "must be an object"),
        (chat(stop=["a"] * 5), "stop", "at most 4 items, not 5"),
        (chat(stop=3), "stop", "a text, or a list"),
        (chat(stop=""), "stop[0]", "must not be empty"),
        (chat(max_tokens=1.5), "max_tokens", "must be a whole number"),
        (chat(temperature=3), "temperature", "must be at most 2"),
        (chat(stream="perhaps"), "stream", "must be true or false"),
        (chat(stream_options={"include": 1}), "stream_options.include", "unknown field"),
        ({"messages": []}, "model", "is missing"),
    ],
)
def test_errors_name_the_part_and_the_fix(body: dict[str, Any], param: str, says: str) -> None:
    error = refusal(body)
    assert error.param == param
    assert param in error.message
    assert says in error.message


def test_an_answer_that_a_client_returns_is_a_message() -> None:
    returned = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None}
    returned |= {"function_call": None, "tool_calls": None, "reasoning": "hm", "reasoning_content": "hm"}
    assert TypeAdapter(Message).validate_python(returned).content is None
    assert "tool_calls is not supported" in refusal(chat() | {"messages": [returned | {"tool_calls": [{}]}]}).message


def test_a_result_of_a_function_is_refused_by_its_name() -> None:
    error = refusal(chat() | {"messages": [{"role": "tool", "tool_call_id": "a", "content": "3"}]})
    assert error.message == "messages[0].tool_call_id is not supported: leave it out"


def test_a_body_that_is_not_json_is_named_without_places_in_it() -> None:
    with pytest.raises(ValidationError) as error:
        VideoRequest.model_validate_json('{"prompt": ')
    refused = invalid_request(error.value.errors())
    assert refused.code == "invalid_json"
    assert refused.message == "the body is not valid JSON: EOF while parsing a value"
