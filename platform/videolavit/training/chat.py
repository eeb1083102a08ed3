"""Conversations about pictures and videos, as JSON lines in the format of LLaVA.

{"id": "1", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhat moves?"},
                                                {"from": "gpt", "value": "A red circle."}]}
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from videolavit.media import DecomposeSettings, MediaError
from videolavit.models.language_model import NO_LABEL
from videolavit.models.objective import Batch
from videolavit.models.visual_tokenizer import normalize_images, resize_image
from videolavit.records import foreign
from videolavit.records.confinement import check_named
from videolavit.records.storage import StorageSettings, open_source
from videolavit.vocabulary import IMAGE, VIDEO, conversation

from .data import DataError, Item

_SPEAKERS = ("human", "gpt")


class BadRecord(MediaError):
    """A line of the file is not a conversation."""


class ConversationTooLong(MediaError):
    """A conversation with its pictures may be longer than the context of the language model."""


@dataclass(frozen=True, eq=False)
class ChatMedia:
    """Pictures and motion of a conversation's image or video.

    Attributes:
        pictures: The image, or the keyframes of the video, uint8 [pictures, size, size, 3].
        motion: Motion of the video's clips, one for each keyframe, float32 [clips, 2, 24, height, width].
    """

    pictures: NDArray[np.uint8]
    motion: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.pictures.nbytes + self.motion.nbytes


@dataclass(frozen=True, eq=False)
class ChatSample:
    """A conversation: token ids with a placeholder for pictures and motion, and a mask of the ids of answers."""

    ids: list[int]
    answer_mask: list[bool]
    media: ChatMedia


@dataclass(frozen=True)
class ChatLimits:
    """Sizes of pictures and motion, and limits of a conversation.

    Args:
        image_size: Side of a picture, in pixels.
        motion_size: Height and width of a motion grid.
        max_clips: Largest number of clips of a video.
        picture_tokens, motion_tokens: Largest number of tokens of a picture, and of the motion of a clip.
        context: Context length of the language model, in tokens.
    """

    image_size: int
    motion_size: tuple[int, int]
    max_clips: int
    picture_tokens: int
    motion_tokens: int
    context: int


class ChatSource:
    """Conversations of a file of JSON lines, which names pictures and videos relative to itself.

    Videos are decomposed as they are for a question to the finished model.

    Args:
        url: Address of the file.
        tokenizer: Text tokenizer of the language model.
        limits: Sizes and limits of the model.
        cache_bytes: Memory for decoded pictures and clips, in bytes.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(
        self, url: str, storage: StorageSettings, tokenizer: Any, limits: ChatLimits, cache_bytes: int
    ) -> None:
        self.name, self._storage, self._tokenizer, self._limits = url, storage, tokenizer, limits
        try:
            with open_source(url, storage) as file:
                self._lines = [line for line in file.read().splitlines() if line.strip()]
        except MediaError as error:
            raise DataError(f"cannot read the chat records {url}: {error}") from None
        self.sizes: Sequence[int] = [len(self._lines)]
        self._cache = _Cache(cache_bytes)

    def load(self, shard: int, row: int) -> ChatSample:
        record = _record(self._lines[row], f"line {row + 1} of {self.name}")
        media = self._cache.get(record.media or "", lambda: self._load_media(record))
        ids, answer_mask = conversation(self._tokenizer, record.turns)
        limits = self._limits
        longest = len(ids) + len(media.pictures) * limits.picture_tokens + len(media.motion) * limits.motion_tokens
        if longest > limits.context:
            raise ConversationTooLong(
                f"line {row + 1} of {self.name}: {len(ids)} ids of text and {len(media.pictures)} pictures may take "
                f"{longest} of a context of {limits.context}; shorten it, or lower chat.max_clips"
            )
        return ChatSample(ids, answer_mask, media)

    def _load_media(self, record: "_Record") -> ChatMedia:
        size, limits = self._limits.image_size, self._limits
        no_motion = np.zeros((0, 2, 24, *limits.motion_size), np.float32)
        if record.media is None:
            return ChatMedia(np.zeros((0, size, size, 3), np.uint8), no_motion)
        address = self._address(record.media)
        if record.kind == "image":
            return ChatMedia(foreign.read_picture(address, self._storage, size)[None], no_motion)
        settings = DecomposeSettings(policy="eval", max_clips=limits.max_clips)
        clips = foreign.read_clips(address, self._storage, settings)
        pictures = np.stack([resize_image(clip.keyframe, size) for clip in clips])
        return ChatMedia(pictures, np.stack([clip.features(limits.motion_size) for clip in clips]))

    def _address(self, name: str) -> str:
        folder, slash, _ = self.name.rpartition("/")
        address = name if "://" in name or name.startswith("/") else f"{folder}{slash}{name}"
        check_named(address, self.name, self._storage.allow)
        return address


def collate_chat(items: Sequence[Item], samples: Sequence[ChatSample]) -> Batch:
    """Collates conversations for `models.language_model.objective.AnswerObjective`. Only answers have labels."""
    ids = [torch.tensor(sample.ids) for sample in samples]
    masks = [torch.tensor(sample.answer_mask) for sample in samples]
    labels = [one.where(mask, torch.tensor(NO_LABEL)) for one, mask in zip(ids, masks, strict=True)]
    tokens: dict[str, int] = {}
    for item, sample in zip(items, samples, strict=True):
        tokens[item.source] = tokens.get(item.source, 0) + len(sample.ids)
    return Batch(
        inputs={
            "prompts": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
            "lengths": torch.tensor([len(sample.ids) for sample in samples]),
            "frames": normalize_images(np.concatenate([sample.media.pictures for sample in samples])),
            "motion": torch.from_numpy(np.concatenate([sample.media.motion for sample in samples])),
            "pictures": torch.tensor([len(sample.media.pictures) for sample in samples]),
            "clips": torch.tensor([len(sample.media.motion) for sample in samples]),
        },
        counts={"loss": float(sum(int(mask.sum()) for mask in masks))},
        positions=[item.position for item in items],
        tokens=tokens,
    )


@dataclass(frozen=True)
class _Record:
    kind: Literal["image", "video"] | None
    media: str | None
    turns: list[tuple[tuple[str | int, ...], str]]


def _record(line: bytes, where: str) -> _Record:
    """Parses a line of the file. Raises BadRecord."""
    try:
        values = json.loads(line)
        kind: Literal["image", "video"] | None = next((one for one in ("image", "video") if values.get(one)), None)
        turns = [(turn["from"], turn["value"]) for turn in values["conversations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(f"{where} is no conversation: {error!r}") from None
    speakers = tuple(speaker for speaker, _ in turns)
    if not turns or len(turns) % 2 or speakers != _SPEAKERS * (len(turns) // 2):
        raise BadRecord(f"{where}: human and gpt must speak in turns, human first and gpt last")
    texts = [str(text).replace(f"<{kind}>", "").strip() for _, text in turns]
    questions: list[tuple[str | int, ...]] = [(text,) for text in texts[::2]]
    if kind:  # the picture or video stands before the first question
        questions[0] = (IMAGE if kind == "image" else VIDEO, *questions[0])
    return _Record(kind, values[kind] if kind else None, list(zip(questions, texts[1::2], strict=True)))


class _Cache:
    """Least recently used cache of media, limited in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._kept: OrderedDict[str, ChatMedia] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self._limit,)  # in another process the cache begins empty

    def get(self, key: str, load: Callable[[], ChatMedia]) -> ChatMedia:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        media = load()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = media
                self._used += media.nbytes
            while self._used > self._limit:
                self._used -= self._kept.popitem(last=False)[1].nbytes
        return media
