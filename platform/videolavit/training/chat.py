"""Questions about pictures and videos with their answers, as LLaVA writes them: JSON lines.

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

from videolavit.media import DecomposeSettings, MediaError, decompose
from videolavit.models.language_model import NO_LABEL
from videolavit.models.objective import Batch
from videolavit.models.visual_tokenizer import normalize_images, resize_image
from videolavit.records.pictures import decode_image
from videolavit.records.storage import StorageSettings, open_source
from videolavit.vocabulary.conversation import conversation

from .data import DataError, Item

_SPEAKERS = ("human", "gpt")


class BadRecord(MediaError):
    """A line is no conversation."""


class ConversationTooLong(MediaError):
    """A conversation with its pictures may exceed the language model's context."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a conversation is about.

    Attributes:
        pictures: uint8 [pictures, size, size, 3].
        motion: float32 [clips, 2, 24, height, width]; of a video there are as many as pictures, of an image none.
    """

    pictures: NDArray[np.uint8]
    motion: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        return self.pictures.nbytes + self.motion.nbytes


@dataclass(frozen=True, eq=False)
class ChatSample:
    """A conversation: token ids with a stand-in for what is shown, and which of them are answers."""

    ids: list[int]
    written: list[bool]
    shown: Shown


@dataclass(frozen=True)
class ChatLimits:
    """What fits.

    Args:
        image_size: Side of a picture in pixels.
        motion_size: Height and width of a motion grid.
        max_clips: Most clips of a video.
        picture_tokens, motion_tokens: The most that a picture, and the motion of a clip, take of the context.
        context: Of the language model.
    """

    image_size: int
    motion_size: tuple[int, int]
    max_clips: int
    picture_tokens: int
    motion_tokens: int
    context: int


class ChatSource:
    """Conversations of a file of JSON lines. Pictures and videos lie where it says, relative to itself.

    Videos are decomposed as for a question to the finished model. What was decoded is kept, as far as memory is given.

    Args:
        url: Of the file.
        tokenizer: Of the language model.
        cache_bytes: Memory for decoded pictures and clips.

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
        shown = self._cache.get(record.media or "", lambda: self._shown(record))
        ids, written = conversation(self._tokenizer, record.turns, record.kind)
        limits = self._limits
        longest = len(ids) + len(shown.pictures) * limits.picture_tokens + len(shown.motion) * limits.motion_tokens
        if longest > limits.context:
            raise ConversationTooLong(
                f"line {row + 1} of {self.name}: {len(ids)} ids of text and {len(shown.pictures)} pictures may take "
                f"{longest} of a context of {limits.context}; shorten it, or lower chat.max_clips"
            )
        return ChatSample(ids, written, shown)

    def _shown(self, record: "_Record") -> Shown:
        size, limits = self._limits.image_size, self._limits
        if record.media is None:
            return Shown(np.zeros((0, size, size, 3), np.uint8), np.zeros((0, 2, 24, *limits.motion_size), np.float32))
        with open_source(self._beside(record.media), self._storage) as file:
            if record.kind == "image":
                return Shown(
                    decode_image(file.read(), size)[None], np.zeros((0, 2, 24, *limits.motion_size), np.float32)
                )
            clips = list(decompose(file, DecomposeSettings(policy="eval", max_clips=limits.max_clips)))
        pictures = np.stack([resize_image(clip.keyframe, size) for clip in clips])
        return Shown(pictures, np.stack([clip.features(limits.motion_size) for clip in clips]))

    def _beside(self, name: str) -> str:
        folder, slash, _ = self.name.rpartition("/")
        return name if "://" in name or name.startswith("/") else f"{folder}{slash}{name}"


def collate_chat(items: Sequence[Item], samples: Sequence[ChatSample]) -> Batch:
    """A batch for `models.language_model.objective.Answering`. Only answers have labels."""
    ids = [torch.tensor(sample.ids) for sample in samples]
    written = [torch.tensor(sample.written) for sample in samples]
    labels = [one.where(mask, torch.tensor(NO_LABEL)) for one, mask in zip(ids, written, strict=True)]
    tokens: dict[str, int] = {}
    for item, sample in zip(items, samples, strict=True):
        tokens[item.source] = tokens.get(item.source, 0) + len(sample.ids)
    return Batch(
        inputs={
            "prompts": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
            "lengths": torch.tensor([len(sample.ids) for sample in samples]),
            "frames": normalize_images(np.concatenate([sample.shown.pictures for sample in samples])),
            "motion": torch.from_numpy(np.concatenate([sample.shown.motion for sample in samples])),
            "pictures": torch.tensor([len(sample.shown.pictures) for sample in samples]),
            "clips": torch.tensor([len(sample.shown.motion) for sample in samples]),
        },
        counts={"loss": float(sum(int(mask.sum()) for mask in written))},
        positions=[item.position for item in items],
        tokens=tokens,
    )


@dataclass(frozen=True)
class _Record:
    kind: Literal["image", "video"] | None
    media: str | None
    turns: list[tuple[str, str]]


def _record(line: bytes, where: str) -> _Record:
    """Raises BadRecord."""
    try:
        values = json.loads(line)
        kind: Literal["image", "video"] | None = next((one for one in ("image", "video") if values.get(one)), None)
        said = [(turn["from"], turn["value"]) for turn in values["conversations"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRecord(f"{where} is no conversation: {error!r}") from None
    speakers = tuple(speaker for speaker, _ in said)
    if not said or len(said) % 2 or speakers != _SPEAKERS * (len(said) // 2):
        raise BadRecord(f"{where}: human and gpt must speak in turns, human first and gpt last")
    texts = [str(text).replace(f"<{kind}>", "").strip() for _, text in said]
    return _Record(kind, values[kind] if kind else None, list(zip(texts[::2], texts[1::2], strict=True)))


class _Cache:
    """What was made last, within so many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._kept: OrderedDict[str, Shown] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self._limit,)  # in another process it begins empty

    def get(self, key: str, make: Callable[[], Shown]) -> Shown:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._used += made.nbytes
            while self._used > self._limit:
                self._used -= self._kept.popitem(last=False)[1].nbytes
        return made
