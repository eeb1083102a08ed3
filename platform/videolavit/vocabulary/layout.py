"""Layout of the language model's ids: text, visual codes, motion codes (docs/model.md, section 5.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class IdOutOfRange(ValueError):
    """Id or code that is not in the vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """Text ids, then [IMG], [/IMG] and the visual codes, then [MOV], [/MOV] and the motion codes.

    Args:
        text_size: Number of ids of the text tokenizer; 32000 for Llama.
        visual_codes: Size of the visual codebook.
        motion_codes: Size of the motion codebook.
    """

    text_size: int
    visual_codes: int
    motion_codes: int

    @property
    def image_start(self) -> int:
        return self.text_size

    @property
    def image_end(self) -> int:
        return self.text_size + 1

    @property
    def visual_range(self) -> range:
        """Ids of the visual codes."""
        return range(self.text_size + 2, self.text_size + 2 + self.visual_codes)

    @property
    def motion_start(self) -> int:
        return self.visual_range.stop

    @property
    def motion_end(self) -> int:
        return self.visual_range.stop + 1

    @property
    def motion_range(self) -> range:
        """Ids of the motion codes."""
        return range(self.visual_range.stop + 2, self.visual_range.stop + 2 + self.motion_codes)

    @property
    def size(self) -> int:
        """Number of ids: rows of the embeddings and the head."""
        return self.motion_range.stop

    def image(self, codes: Iterable[int]) -> list[int]:
        """Converts visual codes to [IMG] ids [/IMG]. Raises IdOutOfRange."""
        return [self.image_start, *_shift(codes, self.visual_range, "visual"), self.image_end]

    def motion(self, codes: Iterable[int]) -> list[int]:
        """Converts motion codes to [MOV] ids [/MOV]. Raises IdOutOfRange."""
        return [self.motion_start, *_shift(codes, self.motion_range, "motion"), self.motion_end]

    def video(self, clips: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
        """Converts a chain of clips (visual codes, motion codes) to ids. Raises IdOutOfRange."""
        return [token for visual, motion in clips for token in (*self.image(visual), *self.motion(motion))]


def _shift(codes: Iterable[int], ids: range, kind: str) -> list[int]:
    codes = [int(code) for code in codes]
    for code in codes:
        if not 0 <= code < len(ids):
            raise IdOutOfRange(f"{kind} code {code} is out of range: the codebook has codes 0 to {len(ids) - 1}")
    return [ids.start + code for code in codes]
