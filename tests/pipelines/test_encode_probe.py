"""Estimate of the tokenizers' time, from batches that are timed."""

from pathlib import Path

import pytest

from pipelines.encode_probe import EncodeSpeed, measure_encoder
from tests.tokens import write_model
from videolavit.models.errors import ModelError
from videolavit.records.encode import read_tokenizers
from videolavit.records.tokenizer_info import EncodeSettings


def test_clips_have_a_picture_and_motion_images_a_picture() -> None:
    assert EncodeSpeed(1.8, 3.6).hours({"clips": 1000, "images": 2000, "texts": 5}) == pytest.approx(1.5 + 1.0)


def test_both_tokenizers_are_timed(tmp_path: Path) -> None:
    model = str(write_model(tmp_path / "model"))
    speed = measure_encoder(EncodeSettings(model=model), read_tokenizers(model), "cpu")
    assert 0 < speed.picture_seconds < 10
    assert 0 < speed.motion_seconds < 10


def test_another_model_on_the_node_is_refused(tmp_path: Path) -> None:
    ours, theirs = (str(write_model(tmp_path / str(seed), seed)) for seed in range(2))
    with pytest.raises(ModelError, match="holds another visual_tokenizer here"):
        measure_encoder(EncodeSettings(model=theirs), read_tokenizers(ours), "cpu")
