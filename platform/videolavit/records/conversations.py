"""Conversations about pictures and videos, in the shapes of LLaVA, ShareGPT and OpenAI: JSON lines, or a JSON array.

{"id": "1", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhat moves?"},
                                                {"from": "gpt", "value": "A red circle."}]}
{"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "<image> <image> Which is red?"},
                                            {"role": "assistant", "content": "The first."}]}
"""

import base64
import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from videolavit.media import MediaError
from videolavit.vocabulary import IMAGE, VIDEO
from videolavit.vocabulary.conversation import MarkedText

from .addresses import shown
from .storage import StorageSettings, open_source

LARGEST_FILE = 2 << 30
"""Largest file of conversations, in bytes: every rank holds its file in memory, as text."""

MediumKind = Literal["image", "video"]
_PLACEHOLDERS: dict[MediumKind, int] = {"image": IMAGE, "video": VIDEO}
_MARKS: dict[str, MediumKind] = {"<image>": "image", "<video>": "video"}
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

_SPLIT = re.compile("(<image>|<video>)")
_SPACE = re.compile(r"[ \t\n\r]*")
_DATA_URL = re.compile(r"data:[\w.+/;=-]*;base64,")
_SHOWN = 80
"""Most characters of a value that a message shows."""


class BadRecord(MediaError):
    """A record is no conversation."""


class BadRecordFile(MediaError):
    """A file holds no records of conversations."""


@dataclass(frozen=True)
class NamedMedium:
    """Picture or video of a conversation.

    Args:
        source: Address as the record names it, relative to its file or absolute; or the file itself, of a data URL.
    """

    kind: MediumKind
    source: str | bytes


@dataclass(frozen=True)
class Conversation:
    """Questions and answers.

    Args:
        turns: Questions with their answers.
        media: Pictures and videos, in the order of their placeholders in the questions.
    """

    turns: Sequence[tuple[MarkedText, str]]
    media: Sequence[NamedMedium]


# ---- files ----------------------------------------------------------------------------------------------------------


def read_records(url: str, storage: StorageSettings) -> list[bytes]:
    """Reads the JSON texts of a file's records: its lines, or the elements of its array.

    Raises:
        MediaError: the file cannot be read, is too large, or is an array that is no JSON.
    """
    with open_source(url, storage) as file:
        size = file.seek(0, os.SEEK_END)
        if size > LARGEST_FILE:
            raise BadRecordFile(f"{shown(url)} has {size} bytes, more than {LARGEST_FILE}; split it")
        file.seek(0)
        data = file.read().removeprefix(codecs.BOM_UTF8)
    if data.lstrip()[:1] != b"[":
        return [line for line in data.splitlines() if line.strip()]
    try:
        return _elements(data.decode())
    except (ValueError, RecursionError) as error:
        raise BadRecordFile(f"{shown(url)} begins as a JSON array and is none: {error}") from None


def _elements(text: str) -> list[bytes]:
    """Cuts an array into its elements, without keeping what they hold. Raises ValueError."""
    decoder = json.JSONDecoder()
    elements: list[bytes] = []
    at = _next_mark(text, text.index("[") + 1)
    while text[at : at + 1] != "]" or elements:
        _, end = decoder.raw_decode(text, at)
        elements.append(text[at:end].encode())
        at = _next_mark(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise ValueError(f"a comma is missing at character {at}")
        at = _next_mark(text, at + 1)
    if _next_mark(text, at + 1) < len(text):
        raise ValueError(f"it goes on after its end, at character {at + 1}")
    return elements


def _next_mark(text: str, start: int) -> int:
    """Place of the next character that is no space."""
    found = _SPACE.match(text, start)
    assert found is not None, "the pattern matches nothing too"
    return found.end()


# ---- records --------------------------------------------------------------------------------------------------------


def parse_conversation(record: bytes) -> Conversation:
    """Parses a record.

    Placeholders stand for the pictures and videos that the record lists, in their order; parts of a content may name
    their own. A text of the system begins the first question, as the service reads it.

    Raises:
        BadRecord: it is no conversation, or its placeholders are not those of its pictures and videos.
    """
    try:
        values = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise BadRecord(f"no object: {_short(values)}")
    messages = [_message(one) for one in _list(values)]
    first: list[str | _Mark] = []
    if messages and messages[0][0] == "system":
        first = messages.pop(0)[1]
    speakers = tuple(speaker for speaker, _ in messages)
    if not messages or speakers != ("user", "assistant") * (len(messages) // 2):
        raise BadRecord("user and assistant must speak in turns, the user first and the assistant last")
    questions = [content for _, content in messages[::2]]
    questions[0] = [*first, *questions[0]]
    answers = [_answer(content) for _, content in messages[1::2]]
    if not all(questions):
        raise BadRecord("a question is empty")
    listed = {kind: _listed(values, kind) for kind in _PLACEHOLDERS}
    marked, media = _placed(questions, listed)
    return Conversation(list(zip(marked, answers, strict=True)), media)


@dataclass(frozen=True)
class _Mark:
    """Place of a picture or a video, which is named there or taken from the record's list."""

    kind: MediumKind
    source: str | bytes | None = None


def _list(values: dict[str, Any]) -> list[Any]:
    found = values.get("conversations", values.get("messages"))
    if not isinstance(found, list):
        raise BadRecord("neither `conversations` nor `messages` is a list")
    return found


def _message(message: Any) -> tuple[str, list[str | _Mark]]:
    """Speaker and content of a message."""
    if not isinstance(message, dict):
        raise BadRecord(f"a message is no object: {_short(message)}")
    named = message.get("from", message.get("role"))
    if not isinstance(named, str) or named not in _SPEAKERS:
        raise BadRecord(f"no speaker is called {_short(named)}; there are {', '.join(_SPEAKERS)}")
    content = message.get("value", message.get("content"))
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return _SPEAKERS[named], [found for part in parts for found in _part(part)]


def _part(part: Any) -> list[str | _Mark]:
    """Texts and marks of a part of a content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        pieces = (piece.strip() for piece in _SPLIT.split(_text(part.get("text"), "a text")))
        return [_Mark(_MARKS[piece]) if piece in _MARKS else piece for piece in pieces if piece]
    if kind not in ("image", "image_url", "video", "video_url"):
        raise BadRecord(f"a part of a content is no text, image or video: {_short(part)}")
    medium: MediumKind = "image" if kind.startswith("image") else "video"
    keys = (medium, f"{medium}_url", "url", "path")
    address = next((part[key] for key in keys if part.get(key) is not None), None)
    if isinstance(address, dict):
        address = address.get("url")
    return [_Mark(medium, None if address is None else _source(address))]


def _answer(content: list[str | _Mark]) -> str:
    texts = [part for part in content if isinstance(part, str)]
    if len(texts) < len(content):
        raise BadRecord("an answer has a place for a picture or a video; only questions can")
    if not texts:
        raise BadRecord("an answer is empty")
    return "\n".join(texts)


def _listed(values: dict[str, Any], kind: MediumKind) -> list[str | bytes]:
    """Sources that a record lists as `image` or `images`, one or more."""
    found: list[str | bytes] = []
    for key in (kind, f"{kind}s"):
        value = values.get(key)
        several = value if isinstance(value, list) else [] if value in (None, "") else [value]
        found += [_source(one) for one in several]
    return found


def _placed(
    questions: list[list[str | _Mark]], listed: dict[MediumKind, list[str | bytes]]
) -> tuple[list[MarkedText], list[NamedMedium]]:
    """Questions with placeholders, and the media that these stand for."""
    open_marks = Counter(
        part.kind for question in questions for part in question if isinstance(part, _Mark) and part.source is None
    )
    # LLaVA-Video and others write <image> for a video
    as_videos = bool(listed["video"]) and not listed["image"] and not open_marks["video"]
    if as_videos:
        open_marks["video"] = open_marks.pop("image", 0)
    for kind, sources in listed.items():
        if open_marks[kind] != len(sources):
            raise BadRecord(f"{open_marks[kind]} placeholders of {kind}s, and {len(sources)} {kind}s")
    left = {kind: iter(sources) for kind, sources in listed.items()}
    media: list[NamedMedium] = []
    marked: list[MarkedText] = []
    for question in questions:
        parts: list[str | int] = []
        for part in question:
            if isinstance(part, str):
                parts.append(part)
                continue
            kind = "video" if as_videos and part.source is None else part.kind
            media.append(NamedMedium(kind, next(left[kind]) if part.source is None else part.source))
            parts.append(_PLACEHOLDERS[kind])
        marked.append(parts)
    return marked, media


def _source(value: Any) -> str | bytes:
    address = _text(value, "an address")
    if (data := _DATA_URL.match(address)) is not None:
        try:
            return base64.b64decode(address[data.end() :], validate=True)
        except ValueError as error:
            raise BadRecord(f"a data URL is broken: {error}") from None
    if not address or "\0" in address:
        raise BadRecord(f"no address: {_short(address)}")
    return address


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{what} is none: {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{what} has half of a surrogate pair") from None
    return value


def _short(value: Any) -> str:
    """A value for messages; of a list or an object its kind alone."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
