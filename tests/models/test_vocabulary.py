"""Vocabulary layout: ids of the codes behind the text ids."""

import pytest

from videolavit.models.presets import load_preset
from videolavit.models.published import VOCABULARY
from videolavit.vocabulary import Vocabulary


def test_published_layout() -> None:
    assert load_preset("video-lavit-7b").vocabulary == VOCABULARY
    assert VOCABULARY.image_start == 32000
    assert VOCABULARY.image_end == 32001
    assert (VOCABULARY.visual_range.start, VOCABULARY.visual_range[-1]) == (32002, 48385)
    assert VOCABULARY.motion_start == 48386
    assert VOCABULARY.motion_end == 48387
    assert (VOCABULARY.motion_range.start, VOCABULARY.motion_range[-1]) == (48388, 49411)
    assert VOCABULARY.size == 49412


def test_every_id_has_one_meaning() -> None:
    vocabulary = Vocabulary(10, 4, 3)
    ids = [*range(vocabulary.text_size), *vocabulary.image(range(4)), *vocabulary.motion(range(3))]
    assert sorted(ids) == list(range(vocabulary.size))


def test_sequences() -> None:
    assert VOCABULARY.image([0, 16383]) == [32000, 32002, 48385, 32001]
    assert VOCABULARY.motion([1023]) == [48386, 49411, 48387]
    assert VOCABULARY.image([]) == [32000, 32001]
    assert VOCABULARY.video([([5], [6]), ([], [7])]) == [
        *(32000, 32007, 32001, 48386, 48394, 48387),
        *(32000, 32001, 48386, 48395, 48387),
    ]


@pytest.mark.parametrize("code", [-1, 16384])
def test_visual_code_out_of_range(code: int) -> None:
    with pytest.raises(ValueError, match=f"visual code {code} is out of range: the codebook has codes 0 to 16383"):
        VOCABULARY.image([0, code])


def test_motion_code_out_of_range() -> None:
    with pytest.raises(ValueError, match="motion code 1024 is out of range"):
        VOCABULARY.motion([1024])
