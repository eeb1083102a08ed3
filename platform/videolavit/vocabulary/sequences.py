"""Training sequences of text, images and videos (docs/model.md, section 5.2).

    text [IMG] codes [/IMG] [MOV] codes [/MOV] ... </s>      text first, without <s>, as prompts for generation are
    [IMG] codes [/IMG] [MOV] codes [/MOV] ... text </s>      text last
    <s> text </s>                                            text alone, as a language model knows it

The unconditional half of guidance starts from [IMG] or [MOV] alone. A sequence with the text left out, and one that
starts with motion, teach the model what comes then.
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
"""Random numbers that a sample's order takes."""


class Modality(IntEnum):
    """What an id belongs to; markers belong to what they wrap."""

    TEXT = 0
    VISUAL = 1
    MOTION = 2


def modality_of(ids: Ids, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The `Modality` of each id."""
    return (ids >= vocabulary.image_start).astype(np.int64) + (ids >= vocabulary.motion_start)


@settings_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OrderSettings:
    """In what order a sample's parts come. None of these was published.

    Args:
        text_first: Share of the captioned samples whose text comes before the pictures; behind them in the others. The
            paper trains both orders and tells no share.
        drop_text: Share of the captioned samples whose text is left out. A tenth is usual for guidance.
        drop_keyframe: Share of the videos that start with the motion of their first clip, without text and keyframe:
            the unconditional half of guidance for motion sees neither.
    """

    text_first: float = 0.5
    drop_text: float = 0.1
    drop_keyframe: float = 0.1

    def __post_init__(self) -> None:
        for name in ("text_first", "drop_text", "drop_keyframe"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0 to 1, not {getattr(self, name):g}")
        if self.drop_text + self.drop_keyframe > 1:
            raise ValueError("drop_text and drop_keyframe must be at most 1 together")


@dataclass(frozen=True, eq=False)
class TokenSample:
    """A sample before its ids are in order.

    Args:
        text: Ids of the text; empty for none.
        clips: (visual codes, motion codes) of each clip; an image is one clip without motion, a text has none.
    """

    text: Ids
    clips: Sequence[tuple[Ids, Ids]] = ()


@dataclass(frozen=True)
class Piece:
    """A sequence, as part of a sample: enough to know its length, and to make its ids once there are codes.

    Attributes:
        text: Which of the text's ids.
        clips: Which clips.
        text_first: Whether the text comes before the clips.
        keyframe: False leaves out the picture of the first clip.
        begin, end: Whether <s> comes first and </s> last.
        length: In ids.
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
    """Makes sequences of at most `context` ids.

    Longer samples become several sequences, so that nothing is lost: a text is cut, a video is cut between clips, and
    its text comes with each part.

    Args:
        begin: Id of <s>; None for a tokenizer without.
        end: Id of </s>.
        context: Most ids of a sequence; at least `longest_clip` and one.
    """

    vocabulary: Vocabulary
    context: int
    end: int
    begin: int | None = None
    order: OrderSettings = field(default_factory=OrderSettings)

    def pieces(self, text: int, clips: Sequence[tuple[int, int]], draws: Sequence[float]) -> list[Piece]:
        """The sequences of a sample.

        Args:
            text: Length of the text in ids.
            clips: Numbers of visual and motion codes of each clip.
            draws: As many numbers in 0 .. 1 as `DRAWS`.
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
        """The ids of a sequence. Raises IdOutOfRange for codes that the vocabulary does not have."""
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
        """A text, or what is left of one, on its own."""
        begin = begin and self.begin is not None
        total = len(ids) + begin + 1 if ids else 0
        pieces = []
        for start in range(0, total, self.context):
            stop = min(start + self.context, total)
            first, last = begin and start == 0, stop == total
            # Positions count <s>, the text's own ids do not.
            text = ids[max(start - begin, 0) : stop - begin - last]
            pieces.append(Piece(text, range(0), True, True, first, last, stop - start))
        return pieces

    def _clip(self, codes: tuple[Ids, Ids]) -> list[Ids]:
        of, (visual, motion) = self.vocabulary, codes
        parts = [_wrapped(of.image_start, visual, of.visual_range, of.image_end)]
        if len(motion):
            parts.append(_wrapped(of.motion_start, motion, of.motion_range, of.motion_end))
        return parts


def longest_clip(visual: int, motion: int) -> int:
    """Ids of a clip of so many codes, markers included."""
    return visual + motion + 4


def _wrapped(start: int, codes: Ids, ids: range, end: int) -> Ids:
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(ids):
        wrong = codes.min() if codes.min() < 0 else codes.max()
        raise IdOutOfRange(f"code {wrong} is out of range: the codebook has codes 0 to {len(ids) - 1}")
    return np.concatenate([[start], codes + ids.start, [end]])


def _groups(lengths: Sequence[int], room: int) -> list[range]:
    """Neighbours together as long as they fit."""
    starts, used = [0], 0
    for index, length in enumerate(lengths):
        if used and used + length > room:
            starts.append(index)
            used = 0
        used += length
    return [range(start, stop) for start, stop in pairwise([*starts, len(lengths)])]
