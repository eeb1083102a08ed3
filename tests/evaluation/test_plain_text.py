"""Plain English of installed packages, and the loss of a language model on it."""

import math
from pathlib import Path

import pytest
import torch

from tests.models.backbones import write_backbone
from videolavit.evaluation.plain_text import PARAGRAPHS, package_texts, text_loss
from videolavit.models.assembly.language_model import read_backbone


def test_texts_are_prose_and_held_out_ones_are_others() -> None:
    training, held_out = package_texts()
    shortest, longest = PARAGRAPHS
    assert len(training) > len(held_out) > 10
    assert all(shortest <= len(text) <= longest + 2 for text in [*training, *held_out])
    paragraphs = [{part for text in texts for part in text.split("\n\n")} for texts in (training, held_out)]
    assert not paragraphs[0] & paragraphs[1]
    assert package_texts() == (training, held_out)


def test_the_loss_is_the_mean_over_tokens(tmp_path: Path) -> None:
    backbone = read_backbone(write_backbone(tmp_path / "source", "llama"))
    network, tokenizer = backbone.network.eval(), backbone.tokenizer
    texts = ["a large red circle moves left fast", "What moves?"]
    found = text_loss(network, tokenizer, texts)
    total = count = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(network(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found == pytest.approx(total / count, rel=1e-5)
    assert math.isnan(text_loss(network, tokenizer, []))
