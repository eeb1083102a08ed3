"""Messages of a chat as turns, in which pictures and videos stand where the client put them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from videolavit.media import CLIP_FRAMES

from .errors import bad_request
from .protocol.chat import ChatRequest, FilePart, ImagePart, Message, Part, RefusalPart, TextPart, VideoPart


@dataclass(frozen=True, eq=False)
class SentMedium:
    """Picture or video of a message.

    Args:
        place: Name of its part of the request, for errors.
        kind: Kind of its files; None if their media type tells.
        urls: Addresses of its files: several for a video that is sent as frames.
        max_clips: Most clips of a video; None for the default.
        fps: Frames per second of a video that is sent as frames.
    """

    place: str
    kind: Literal["image", "video", "frames"] | None
    urls: list[str]
    max_clips: int | None = None
    fps: float = 0.0


MessageContent = list[str | SentMedium]


def read_conversation(
    request: ChatRequest, images_as_video_fps: float | None
) -> tuple[list[tuple[MessageContent, str]], MessageContent]:
    """Answered turns of a chat, and the content to answer. Messages of one speaker in a row are one.

    Args:
        images_as_video_fps: Frames per second of pictures in a row, which become a video; None to leave them pictures.

    Raises:
        ApiError: a picture in an assistant's message, or nothing to answer.
    """
    turns: list[tuple[MessageContent, str]] = []
    asked: MessageContent = []
    for number, message in enumerate(request.messages):
        content = list(_content(message, number, request, images_as_video_fps))
        if message.role != "assistant":
            asked += content
            continue
        if message.refusal:
            content.append(message.refusal)
        texts = [part for part in content if isinstance(part, str)]
        if len(texts) < len(content):
            raise bad_request(f"messages[{number}]: an assistant's message must be a text", "messages")
        if not asked and turns:
            question, answer = turns.pop()
            turns.append((question, "\n".join([answer, *texts])))
        else:
            turns.append((asked, "\n".join(texts)))
        asked = []
    if not any(isinstance(part, SentMedium) or part.strip() for part in asked):
        raise bad_request("the last message must be the user's, with a text, a picture or a video", "messages")
    return turns, asked


def _content(message: Message, number: int, request: ChatRequest, fps: float | None) -> Iterator[str | SentMedium]:
    """Yields the texts, pictures and videos of a message."""
    parts = [(f"messages[{number}].content[{index}]", part) for index, part in enumerate(message.content or ())]
    for is_image, group in groupby(parts, lambda placed: isinstance(placed[1], ImagePart)):
        row = list(group)
        if is_image and fps is not None and len(row) > 1:
            urls = [part.image_url.url for _, part in row if isinstance(part, ImagePart)]
            yield SentMedium(row[0][0], "frames", urls, fps=fps)
            continue
        for place, part in row:
            yield _text_or_medium(place, part, request)


def _text_or_medium(place: str, part: Part, request: ChatRequest) -> str | SentMedium:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case ImagePart():
            return SentMedium(place, "image", [part.image_url.url])
        case FilePart():
            return SentMedium(place, None, [part.file.file_data])
        case VideoPart():
            hints = request.media_io_kwargs and request.media_io_kwargs.video
            most = [part.max_frames, part.video_url.max_frames, hints.num_frames if hints else None]
            frames = min((count for count in most if count is not None and count > 0), default=None)
            return SentMedium(place, "video", [part.video_url.url], frames and max(1, frames // CLIP_FRAMES))


def texts_of(turns: Sequence[tuple[MessageContent, str]], question: MessageContent) -> list[str]:
    """All texts of a chat."""
    contents = [part for content, answer in turns for part in (*content, answer)]
    return [part for part in (*contents, *question) if isinstance(part, str)]


def media_of(turns: Sequence[tuple[MessageContent, str]], question: MessageContent) -> list[SentMedium]:
    """All pictures and videos of a chat."""
    return [
        part
        for content in (*(content for content, _ in turns), question)
        for part in content
        if not isinstance(part, str)
    ]
