"""Records of conversations in the shapes that people publish, and those that are refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videolavit.records.conversations import BadRecord, NamedMedium, parse_conversation
from videolavit.vocabulary import IMAGE, VIDEO

A, B, MOVIE = NamedMedium("image", "a.png"), NamedMedium("image", "b.png"), NamedMedium("video", "a.mp4")


def llava(*texts: Any, **keys: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {**keys, "conversations": turns}


def openai(*contents: Any, **keys: Any) -> dict[str, Any]:
    names = "user", "assistant"
    messages = [{"role": names[index % 2], "content": content} for index, content in enumerate(contents)]
    return {**keys, "messages": messages}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


TURNED = [({"role": "system", "content": "Be short."})]


@pytest.mark.parametrize(
    ("record", "turns", "media"),
    [
        (llava("<image>\nWhat?", "A dot.", image="a.png"), [([IMAGE, "What?"], "A dot.")], [A]),
        (llava("What?\n<image>", "x", image=["a.png"]), [(["What?", IMAGE], "x")], [A]),
        (llava("<image>\nWhat?", "x", images=["a.png"]), [([IMAGE, "What?"], "x")], [A]),
        (llava("<image> <image> differ?", "x", images=["a.png", "b.png"]), [([IMAGE, IMAGE, "differ?"], "x")], [A, B]),
        (llava("Compare <image> with a ball", "x", image="a.png"), [(["Compare", IMAGE, "with a ball"], "x")], [A]),
        (
            llava("hi", "x", "<image>\nand this?", "y", image="a.png"),
            [(["hi"], "x"), ([IMAGE, "and this?"], "y")],
            [A],
        ),
        (llava("<video>\nWhat?", "x", video="a.mp4"), [([VIDEO, "What?"], "x")], [MOVIE]),
        (llava("<image>\nWhat?", "x", video="a.mp4"), [([VIDEO, "What?"], "x")], [MOVIE]),  # LLaVA-Video-178K
        (
            llava("<video>\n<image>\nWhat?", "x", image="a.png", video="a.mp4"),
            [([VIDEO, IMAGE, "What?"], "x")],
            [MOVIE, A],
        ),
        (llava("One and one?", "Two.", image=None, video=""), [(["One and one?"], "Two.")], []),
        (openai("<image>Which?", "x", images=["a.png"]), [([IMAGE, "Which?"], "x")], [A]),
        (
            openai([{"type": "image"}, text("what?")], [text("a dot")], image="a.png"),
            [([IMAGE, "what?"], "a dot")],
            [A],
        ),
        (
            openai(
                [text("1"), {"type": "image_url", "image_url": {"url": "b.png"}}, {"type": "image"}], "x", image="a.png"
            ),
            [(["1", IMAGE, IMAGE], "x")],
            [B, A],
        ),
        (openai([{"type": "video", "video": "a.mp4"}, text("?")], "x"), [([VIDEO, "?"], "x")], [MOVIE]),
        (openai([{"type": "video_url", "video_url": "a.mp4"}], "x"), [([VIDEO], "x")], [MOVIE]),
        (
            {"messages": [*TURNED, *openai("<image>", "x")["messages"]], "image": "a.png"},
            [(["Be short.", IMAGE], "x")],
            [A],
        ),
    ],
)
def test_shapes(record: dict[str, Any], turns: Any, media: list[NamedMedium]) -> None:
    found = parse_conversation(json.dumps(record).encode())
    assert list(found.turns) == turns
    assert list(found.media) == media


def test_a_picture_may_be_in_the_record() -> None:
    url = "data:image/png;base64,aGVsbG8="
    record = openai([{"type": "image_url", "image_url": {"url": url}}], "x")
    assert parse_conversation(json.dumps(record).encode()).media == [NamedMedium("image", b"hello")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (llava("<image>\nWhat?", "x"), "1 placeholders of images, and 0 images"),
        (llava("<image>\nWhat?", "x", image=""), "1 placeholders of images, and 0 images"),
        (llava("<image> <image> differ?", "x", image="a.png"), "2 placeholders of images, and 1 images"),
        (llava("<image>\nWhat?", "x", image=["a.png", "b.png"]), "1 placeholders of images, and 2 images"),
        (llava("What?", "x", image="a.png"), "0 placeholders of images, and 1 images"),
        (llava("<video> <image>", "x", video="a.mp4"), "1 placeholders of images, and 0 images"),
        (llava(None, None, image="a.png"), "a text is none: null"),
        (llava("What?", 7), "a text is none: 7"),
        (llava("What?", {"a": 1}), "a text is none: an object"),
        (llava("What?", ""), "an answer is empty"),
        (llava(" ", "x"), "a question is empty"),
        (llava("What?", "<image>", image="a.png"), "only questions can"),
        (llava("What?", "\ud800"), "half of a surrogate pair"),
        (llava("<image>", "x", image=[["a.png"]]), "an address is none: a list"),
        (llava("<image>", "x", image=[""]), "no address"),
        (llava("<image>", "x", image="a\0.png"), "no address"),
        (llava("<image>", "x", image="data:image/png;base64,a"), "a data URL is broken"),
        (llava("What?"), "must speak in turns"),
        (llava(), "must speak in turns"),
        ({"conversations": llava("a", "b")["conversations"][::-1]}, "must speak in turns"),
        ({"messages": [*openai("a", "b")["messages"], *TURNED]}, "must speak in turns"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'no speaker is called "tool"'),
        ({"messages": [{"content": "x"}]}, "no speaker is called null"),
        ({"messages": ["x"]}, 'a message is no object: "x"'),
        (openai(["x"], "y"), "no text, image or video"),
        (openai([{"type": "audio", "audio": "x.wav"}], "y"), "no text, image or video"),
        ({"messages": "x"}, "neither `conversations` nor `messages` is a list"),
        ({}, "neither `conversations` nor `messages` is a list"),
        ([1, 2], "no object"),
        ("x" * 1000, "no object"),
    ],
)
def test_odd_records_are_refused(record: Any, message: str) -> None:
    with pytest.raises(BadRecord, match=message) as refused:
        parse_conversation(json.dumps(record).encode())
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("record", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"messages": ' + b"[" * 200_000, b"NaN"])
def test_what_is_no_json_is_refused(record: bytes) -> None:
    with pytest.raises(BadRecord):
        parse_conversation(record)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "<image>", "<video> x", "a.png", "user", "gpt", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "image", "image_url", "url"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(messages=VALUES, image=VALUES, videos=VALUES)
@settings(max_examples=300, deadline=None)
def test_no_record_does_anything_else(messages: Any, image: Any, videos: Any) -> None:
    record = {"messages": messages, "image": image, "videos": videos}
    try:
        found = parse_conversation(json.dumps(record).encode())
    except BadRecord:
        return
    marks = [part for question, _ in found.turns for part in question if not isinstance(part, str)]
    assert [{IMAGE: "image", VIDEO: "video"}[mark] for mark in marks] == [medium.kind for medium in found.media]
