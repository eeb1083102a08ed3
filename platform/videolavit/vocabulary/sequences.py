"""Training sequences of text, images and videos (docs/model.md, section 5.2).

    text [IMG] codes [/IMG] [MOV] codes [/MOV] ... </s>      text first, without <s>, like the prompts of generation
    [IMG] codes [/IMG] [MOV] codes [/MOV] ... text </s>      text last
    <s> text </s>                                            text alone

The unconditional half of guidance starts from [IMG] or [MOV] alone. Sequences without text, and sequences that start
with motion, train the model for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings_dataclass

from .layout import IdOutOfRange, Vocabulary

Ids = NDArray[np.int64]

DRAWS = 2
"""Number of random numbers that decide the order of a sample."""


class TokenType(IntEnum):
    """Type of an id; markers have the type of their codes."""

    TEXT = 0
    VISUAL = 1
    MOTION = 2


def token_types(ids: Ids, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Returns the `TokenType` of each id."""
    return (ids >= vocabulary.image_start).astype(np.int64) + (ids >= vocabulary.motion_start)


@settings_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OrderSettings:
    """Order of text and pictures in training sequences. None of these values is published.

    Args:
        text_first: Share of the captioned samples whose text comes before the pictures; in the others it comes last.
            The paper trains both orders and does not state the share.
        drop_text: Share of the captioned samples without their text. A tenth is usual for guidance.
        drop_keyframe: Share of the videos that start with the motion of their first clip, without text and keyframe,
            like the unconditional half of guidance for motion.
    """

    text_first: float = 0.5
    drop_text: float = 0.1
    drop_keyframe: float = 0.1

    def __post_init__(self) -> None:
        for name in ("text_first", "drop_text", "drop_keyframe"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, not {getattr(self, name):g}")
        if self.drop_text + self.drop_keyframe > 1:
            raise ValueError("drop_text and drop_keyframe must sum to at most 1")


@dataclass(frozen=True, eq=False)
class TokenSample:
    """Text ids and codes of a sample.

    Args:
        text: Ids of the text; empty for a sample without text.
        clips: (visual codes, motion codes) of each clip. An image is one clip without motion; a text has no clip.
    """

    text: Ids
    clips: Sequence[tuple[Ids, Ids]] = ()


@dataclass(frozen=True)
class Piece:
    """Content of one training sequence of a sample. Its length is known before codes are read.

    Attributes:
        text: Range of the text's ids.
        clips: Range of clips.
        text_first: True if the text comes before the clips.
        keyframe: True if the first clip has its keyframe.
        begin: True if the sequence begins with <s>.
        end: True if the sequence ends with </s>.
        length: Length, in ids.
    """

    text: range
    clips: range
    text_first: bool
    keyframe: bool
    begin: bool
    end: bool
    length: int


@dataclass(frozen=True)
class Assembler:
    """Turns samples into training sequences of at most `context` ids.

    Longer samples become several sequences, so that nothing is lost: texts are cut anywhere, videos are cut between
    clips, and each part of a video has the text.

    Args:
        vocabulary: Layout of the ids.
        context: Largest length of a sequence, in ids; at least one more than `longest_clip`.
        end: Id of </s>.
        begin: Id of <s>; None for a tokenizer without one.
        order: Order of text and pictures.
    """

    vocabulary: Vocabulary
    context: int
    end: int
    begin: int | None = None
    order: OrderSettings = field(default_factory=OrderSettings)

    def pieces(self, text: int, clips: Sequence[tuple[int, int]], draws: Sequence[float]) -> list[Piece]:
        """Divides a sample into sequences.

        Args:
            text: Length of the text, in ids.
            clips: Numbers of visual and motion codes of each clip.
            draws: `DRAWS` random numbers from 0 to 1.
        """
        if not clips:
            return self._text(range(text), begin=True) if text else []
        lengths = [visual + 2 + (motion + 2 if motion else 0) for visual, motion in clips]
        share, order = draws
        keyframe = not (clips[0][1] and share < self.order.drop_keyframe)
        with_text = bool(text) and keyframe and share < 1 - self.order.drop_text
        text_first = order < self.order.text_first
        if not keyframe:
            lengths[0] -= clips[0][0] + 2
        shown = range(min(text, self.context - 1 - max(lengths)) if with_text else 0)
        assert self.context > max(lengths), "the context holds a clip"
        pieces = []
        for group in _groups(lengths, self.context - 1 - len(shown)):
            end = group.stop == len(clips) or (with_text and not text_first)
            size = len(shown) + sum(lengths[group.start : group.stop]) + end
            pieces.append(Piece(shown, group, text_first, keyframe or group.start > 0, False, end, size))
        return pieces + (self._text(range(len(shown), text), begin=False) if with_text else [])

    def ids(self, piece: Piece, sample: TokenSample) -> Ids:
        """Returns the ids of a sequence. Raises IdOutOfRange for codes that are not in the vocabulary."""
        text = sample.text[piece.text.start : piece.text.stop]
        clips = [part for clip in piece.clips for part in self._clip(sample.clips[clip])]
        if not piece.keyframe:
            clips = clips[1:]
        parts = [text, *clips] if piece.text_first else [*clips, text]
        begin = [self.begin] if piece.begin else []
        ids = np.concatenate([begin, *parts, [self.end] if piece.end else []]).astype(np.int64)
        assert len(ids) == piece.length, "lengths are known before the ids"
        return ids

    def _text(self, ids: range, begin: bool) -> list[Piece]:
        """Divides a text without clips, or the rest of a text, into sequences."""
        begin = begin and self.begin is not None
        total = len(ids) + begin + 1 if ids else 0
        pieces = []
        for start in range(0, total, self.context):
            stop = min(start + self.context, total)
            first, last = begin and start == 0, stop == total
            # Positions count <s>; the range of the text does not.
            text = ids[max(start - begin, 0) : stop - begin - last]
            pieces.append(Piece(text, range(0), True, True, first, last, stop - start))
        return pieces

    def _clip(self, codes: tuple[Ids, Ids]) -> list[Ids]:
        ids, (visual, motion) = self.vocabulary, codes
        parts = [_wrapped(ids.image_start, visual, ids.visual_range, ids.image_end)]
        if len(motion):
            parts.append(_wrapped(ids.motion_start, motion, ids.motion_range, ids.motion_end))
        return parts


def longest_clip(visual: int, motion: int) -> int:
    """Returns the length of a clip in ids, markers included, from its numbers of codes."""
    return visual + motion + 4


def _wrapped(start: int, codes: Ids, ids: range, end: int) -> Ids:
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(ids):
        wrong = codes.min() if codes.min() < 0 else codes.max()
        raise IdOutOfRange(f"code {wrong} is out of range: the codebook has codes 0 to {len(ids) - 1}")
    return np.concatenate([[start], codes + ids.start, [end]])


def _groups(lengths: Sequence[int], room: int) -> list[range]:
    """Groups consecutive lengths while their sum is at most `room`."""
    starts, used = [0], 0
    for index, length in enumerate(lengths):
        if used and used + length > room:
            starts.append(index)
            used = 0
        used += length
    return [range(start, stop) for start, stop in pairwise([*starts, len(lengths)])]
