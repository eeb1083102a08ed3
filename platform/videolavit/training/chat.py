"""Conversations about pictures and videos as samples: token ids, pictures and motion."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from videolavit.records.conversations import BadRecord, NamedMedium, parse_conversation, read_records
from videolavit.records.storage import StorageSettings, absolute_url
from videolavit.vocabulary import conversation

from .data import DataError, Item


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
    """A conversation.

    Attributes:
        ids: Token ids, with a placeholder for each picture and video.
        answer_mask: Mask of the ids of answers.
        media: Pictures and videos, in the order of their placeholders.
    """

    ids: list[int]
    answer_mask: list[bool]
    media: list[ChatMedia]


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
    """Conversations of a file, which names pictures and videos relative to itself.

    Videos are decomposed as they are for a question to the finished model.

    Args:
        url: Address of the file.
        tokenizer: Text tokenizer of the language model.
        limits: Sizes and limits of the model.
        cache_bytes: Memory for decoded pictures and clips, in bytes.

    Raises:
        DataError: the file cannot be read, or has no records.
    """

    def __init__(
        self, url: str, storage: StorageSettings, tokenizer: Any, limits: ChatLimits, cache_bytes: int
    ) -> None:
        self.name, self._storage, self._tokenizer, self._limits = url, storage, tokenizer, limits
        self._file = absolute_url(url)
        try:
            self._records = read_records(self._file, storage)
        except MediaError as error:
            raise DataError(f"cannot read the conversations {url}: {error}") from None
        if not self._records:
            raise DataError(f"{url} has no conversations")
        self.sizes: Sequence[int] = [len(self._records)]
        self.content = hashlib.sha256(b"\n".join(self._records)).hexdigest()[:16]
        self._cache = _Cache(cache_bytes)

    def load(self, shard: int, row: int) -> ChatSample:
        try:
            record = parse_conversation(self._records[row])
        except BadRecord as error:
            raise BadRecord(f"{self._place(row)}: {error}") from None
        ids, answer_mask = conversation(self._tokenizer, record.turns)
        self._check_length(row, len(ids), len(record.media), 0)  # before a thousand pictures are decoded
        media = [self._cache.get(one, partial(self._load_medium, one)) for one in record.media]
        pictures, clips = sum(len(one.pictures) for one in media), sum(len(one.motion) for one in media)
        self._check_length(row, len(ids), pictures, clips)
        return ChatSample(ids, answer_mask, media)

    def identify(self, shard: int, row: int) -> str:
        return self._place(row)

    def _place(self, row: int) -> str:
        return f"record {row + 1} of {self.name}"

    def _check_length(self, row: int, ids: int, pictures: int, clips: int) -> None:
        limits = self._limits
        longest = ids + pictures * limits.picture_tokens + clips * limits.motion_tokens
        if longest > limits.context:
            raise ConversationTooLong(
                f"{self._place(row)}: {ids} ids of text and {pictures} pictures may take {longest} of a context of "
                f"{limits.context}; shorten it, or lower chat.max_clips"
            )

    def _load_medium(self, medium: NamedMedium) -> ChatMedia:
        size, limits = self._limits.image_size, self._limits
        source = medium.source if isinstance(medium.source, bytes) else self._address(medium.source)
        if medium.kind == "image":
            no_motion = np.zeros((0, 2, 24, *limits.motion_size), np.float32)
            return ChatMedia(foreign.read_picture(source, self._storage, size)[None], no_motion)
        settings = DecomposeSettings(policy="eval", max_clips=limits.max_clips)
        clips = foreign.read_clips(source, self._storage, settings)
        pictures = np.stack([resize_image(clip.keyframe, size) for clip in clips])
        return ChatMedia(pictures, np.stack([clip.features(limits.motion_size) for clip in clips]))

    def _address(self, name: str) -> str:
        folder = self._file.rpartition("/")[0]
        address = absolute_url(name if "://" in name or name.startswith("/") else f"{folder}/{name}")
        check_named(address, self._file, self._storage.allow)
        return address


def collate_chat(items: Sequence[Item], samples: Sequence[ChatSample]) -> Batch:
    """Collates conversations for `models.language_model.objective.AnswerObjective`. Only answers have labels."""
    ids = [torch.tensor(sample.ids) for sample in samples]
    masks = [torch.tensor(sample.answer_mask) for sample in samples]
    labels = [one.where(mask, torch.tensor(NO_LABEL)) for one, mask in zip(ids, masks, strict=True)]
    media = [medium for sample in samples for medium in sample.media]
    frames = [medium.pictures for medium in media] or [np.zeros((0, 1, 1, 3), np.uint8)]
    motion = [medium.motion for medium in media] or [np.zeros((0, 2, 24, 1, 1), np.float32)]
    tokens: dict[str, int] = {}
    for item, sample in zip(items, samples, strict=True):
        tokens[item.source] = tokens.get(item.source, 0) + len(sample.ids)
    return Batch(
        inputs={
            "prompts": pad_sequence(ids, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
            "lengths": torch.tensor([len(sample.ids) for sample in samples]),
            "media": torch.tensor([len(sample.media) for sample in samples]),
            "frames": normalize_images(np.concatenate(frames)),
            "motion": torch.from_numpy(np.concatenate(motion)),
            "pictures": torch.tensor([len(medium.pictures) for medium in media], dtype=torch.int64),
            "clips": torch.tensor([len(medium.motion) for medium in media], dtype=torch.int64),
        },
        counts={"loss": float(sum(int(mask.sum()) for mask in masks))},
        positions=[item.position for item in items],
        tokens=tokens,
    )


class _Cache:
    """Least recently used cache of media, limited in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._kept: OrderedDict[NamedMedium, ChatMedia] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self._limit,)  # in another process the cache begins empty

    def get(self, key: NamedMedium, load: Callable[[], ChatMedia]) -> ChatMedia:
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
