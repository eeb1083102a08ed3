"""Ids in order: what is promised of lengths, cuts and conditions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videolavit.vocabulary import Vocabulary
from videolavit.vocabulary.layout import IdOutOfRange
from videolavit.vocabulary.sequences import (
    Assembler,
    Ids,
    OrderSettings,
    TokenSample,
    TokenType,
    longest_clip,
    token_types,
)

OF = Vocabulary(text_size=20, visual_codes=8, motion_codes=6)
BEGIN, END = 1, 2
AS_THEY_ARE = OrderSettings(text_first=1.0, drop_text=0.0, drop_keyframe=0.0)
CODES = st.integers(0, 4).flatmap(lambda n: st.lists(st.integers(0, 7), min_size=n, max_size=n))
CLIPS = st.lists(st.tuples(CODES, st.lists(st.integers(0, 5), min_size=3, max_size=3)), max_size=5)


def assembler(context: int = 100, **order: float) -> Assembler:
    settings = OrderSettings(**({"text_first": 1.0, "drop_text": 0.0, "drop_keyframe": 0.0} | order))
    return Assembler(OF, context, END, BEGIN, settings)


def sample(text: list[int], clips: list[tuple[list[int], list[int]]]) -> TokenSample:
    return TokenSample(ids(text), [(ids(visual), ids(motion)) for visual, motion in clips])


def ids(values: list[int]) -> Ids:
    return np.asarray(values, np.int64)


def sequences(of: Assembler, one: TokenSample, draws: tuple[float, float] = (0.5, 0.5)) -> list[list[int]]:
    lengths = [(len(visual), len(motion)) for visual, motion in one.clips]
    return [of.ids(piece, one).tolist() for piece in of.pieces(len(one.text), lengths, draws)]


CLIP = ([3], [4])
CLIP_IDS = [*OF.image([3]), *OF.motion([4])]


def test_orders_and_conditions() -> None:
    of = assembler(text_first=0.5, drop_text=0.1, drop_keyframe=0.2)
    video = sample([5, 6], [CLIP])
    assert sequences(of, video, (0.5, 0.4)) == [[5, 6, *CLIP_IDS, END]]
    assert sequences(of, video, (0.5, 0.6)) == [[*CLIP_IDS, 5, 6, END]]
    assert sequences(of, video, (0.95, 0.4)) == [[*CLIP_IDS, END]]
    assert sequences(of, video, (0.1, 0.4)) == [[*OF.motion([4]), END]]
    assert sequences(of, sample([5], [([3], [])]), (0.1, 0.4)) == [[5, *OF.image([3]), END]]
    assert sequences(of, sample([5, 6], []), (0.95, 0.9)) == [[BEGIN, 5, 6, END]]
    assert sequences(of, sample([], [])) == []


def test_a_long_text_is_cut() -> None:
    assert sequences(assembler(4), sample([5, 6, 7, 8, 9], [])) == [[BEGIN, 5, 6, 7], [8, 9, END]]
    assert sequences(assembler(4), sample([5, 6, 7], [])) == [[BEGIN, 5, 6, 7], [END]]


def test_a_long_video_is_cut_between_clips_and_keeps_its_text() -> None:
    context = 2 + 2 * len(CLIP_IDS) + 1
    one = sample([5, 6], [CLIP] * 5)
    assert sequences(assembler(context), one) == [
        [5, 6, *CLIP_IDS * 2],
        [5, 6, *CLIP_IDS * 2],
        [5, 6, *CLIP_IDS, END],
    ]
    assert sequences(assembler(context, text_first=0.0), one)[0] == [*CLIP_IDS * 2, 5, 6, END]


def test_a_text_that_leaves_no_room_for_a_clip_goes_on_alone() -> None:
    one = sample(list(range(3, 13)), [CLIP])
    assert sequences(assembler(len(CLIP_IDS) + 4), one) == [[3, 4, 5, *CLIP_IDS, END], [6, 7, 8, 9, 10, 11, 12, END]]


@given(st.lists(st.integers(3, 19), max_size=40), CLIPS, st.integers(12, 40), st.floats(0, 0.99), st.floats(0, 0.99))
def test_nothing_is_lost_but_what_is_dropped(
    text: list[int], clips: list[tuple[list[int], list[int]]], context: int, first: float, second: float
) -> None:
    """However it is cut, every code comes once, every text id at least once, and no sequence is too long."""
    of = assembler(context, text_first=0.5)
    made = sequences(of, sample(text, clips), (first, second))
    assert all(0 < len(one) <= context for one in made)
    assert context >= longest_clip(4, 3) + 1
    codes = [token for one in made for token in one if token >= OF.text_size]
    assert codes == OF.video(clips)
    seen, wanted = Counter(token for one in made for token in one if token < OF.text_size), Counter(text)
    assert all(seen[token] >= number for token, number in wanted.items())


def test_modalities_hold_their_markers() -> None:
    line = ids([BEGIN, 5, *CLIP_IDS, END])
    text, visual, motion = TokenType
    assert token_types(line, OF).tolist() == [text, text, visual, visual, visual, motion, motion, motion, text]


def test_a_code_of_a_larger_codebook_is_refused() -> None:
    with pytest.raises(IdOutOfRange, match="code 8 is out of range"):
        sequences(assembler(), sample([], [([8], [])]))
