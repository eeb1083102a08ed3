"""Messages of a chat as turns: every speaker's messages, and pictures and videos where they stand."""

from typing import Any

import pytest

from serve.conversation import MessageContent, SentMedium, read_conversation
from serve.errors import ApiError
from serve.protocol.chat import ChatRequest

URL = {"url": "data:,"}
IMAGE = {"type": "image_url", "image_url": URL}


def user(*parts: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def assistant(text: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | fields


def read(*messages: dict[str, Any], fps: float | None = None, **fields: Any) -> Any:
    request = ChatRequest.model_validate({"model": "m", "messages": messages} | fields)
    turns, question = read_conversation(request, fps)
    return [(_shown(content), answer) for content, answer in turns], _shown(question)


def _shown(content: MessageContent) -> list[object]:
    """MessageContent with the kind, the place and the details of each medium."""
    return [
        (part.kind, part.place, len(part.urls), part.max_clips, part.fps) if isinstance(part, SentMedium) else part
        for part in content
    ]


def image(message: int, part: int) -> tuple[object, ...]:
    return "image", f"messages[{message}].content[{part}]", 1, None, 0.0


def test_media_stand_where_they_were_put() -> None:
    messages = [user("one", IMAGE, "two"), assistant("three"), user(IMAGE)]
    assert read(*messages) == ([(["one", image(0, 1), "two"], "three")], [image(2, 0)])


def test_messages_of_one_speaker_are_joined() -> None:
    system = {"role": "system", "content": "be brief"}
    messages = [system, user("a"), user("b"), assistant("c"), assistant(None, refusal="no"), user("d"), user("e")]
    assert read(*messages) == ([(["be brief", "a", "b"], "c\nno")], ["d", "e"])
    assert read(assistant("welcome"), user("hi")) == ([([], "welcome")], ["hi"])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([user("a"), assistant("b")], "the last message must be the user's"),
        ([user(" ")], "the last message must be the user's"),
        ([assistant("x") | {"content": [IMAGE]}, user("a")], "messages[0]: an assistant's message must be a text"),
    ],
)
def test_chats_without_a_question_are_refused(messages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ApiError) as error:
        read(*messages)
    assert says in error.value.message


def test_images_in_a_row_may_be_a_video() -> None:
    frames = ("frames", "messages[0].content[1]", 3, None, 2.0)
    message = user("of:", IMAGE, IMAGE, IMAGE, "and", IMAGE)
    assert read(message, fps=2.0)[1] == ["of:", frames, "and", image(0, 5)]
    assert read(message)[1] == ["of:", image(0, 1), image(0, 2), image(0, 3), "and", image(0, 5)]


@pytest.mark.parametrize(
    ("url_hints", "part_hints", "request_hints", "clips"),
    [
        ({}, {"fps": 2, "min_frames": 4, "max_pixels": 100}, {"mm_processor_kwargs": {"fps": 1}}, None),
        ({"max_frames": 64, "fps": 1}, {}, {}, 2),
        ({}, {"max_frames": 8}, {}, 1),
        ({"max_frames": 96}, {}, {"media_io_kwargs": {"video": {"num_frames": 72, "fps": 1}}}, 3),
        ({}, {}, {"media_io_kwargs": {"video": {"num_frames": -1}}}, None),
    ],
)
def test_hints_for_the_frames_of_a_video(
    url_hints: dict[str, Any], part_hints: dict[str, Any], request_hints: dict[str, Any], clips: int | None
) -> None:
    part = {"type": "video_url", "video_url": URL | url_hints} | part_hints
    assert read(user(part), **request_hints)[1] == [("video", "messages[0].content[0]", 1, clips, 0.0)]
