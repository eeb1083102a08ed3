"""The key-value cache: what is read stays where it is, and rows come and go without a change for the others."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.generation.decoding import DecodeBatch, embed_prompts
from videolavit.generation.kv_cache import SPARE_TOKENS

WORDS = 50


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_hidden_layers=2, **sizes)).eval()


@torch.inference_mode()
def test_rows_that_come_and_go_read_what_they_read_alone(model: LlamaForCausalLM) -> None:
    """Over more ids than there is room for at first, so that the cache grows on the way."""
    rows = [list(range(3, 3 + length)) for length in (4, 9, 30)]
    batch = DecodeBatch(model, embed_prompts(model, rows[:2]))
    draw = torch.Generator().manual_seed(1)

    def feed(count: int) -> None:
        for _ in range(count):
            ids = torch.randint(WORDS, (len(rows),), generator=draw).tolist()
            for row, token in zip(rows, ids, strict=True):
                row.append(token)
            batch.append_tokens(ids)

    def check() -> None:
        for row, logits in zip(rows, batch.logits, strict=True):
            expected = model(torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)

    late = rows.pop()
    feed(SPARE_TOKENS + 5)
    check()
    rows.append(late)
    batch.append_rows(DecodeBatch(model, embed_prompts(model, [late])))
    check()
    feed(SPARE_TOKENS + 5)
    check()
    batch.keep_rows([2, 1])  # the last takes the place of the first
    rows = [rows[2], rows[1]]
    feed(2)
    check()
    batch.keep_rows([0])  # and the padding that only the others needed
    del rows[1]
    feed(3 * SPARE_TOKENS)
    check()


@torch.inference_mode()
def test_an_id_is_written_in_place(model: LlamaForCausalLM) -> None:
    batch = DecodeBatch(model, embed_prompts(model, [[3, 4, 5]]))
    places = []
    for token in range(SPARE_TOKENS):
        batch.append_tokens([token % WORDS])
        places.append(batch._cache.layers[1].keys.data_ptr())
    assert len(set(places)) == 1
    batch.append_tokens([1])
    assert batch._cache.layers[1].keys.data_ptr() != places[0]


@torch.inference_mode()
def test_a_row_takes_the_place_of_one_that_left_and_nothing_of_it(model: LlamaForCausalLM) -> None:
    """Not even what is no number."""
    batch = DecodeBatch(model, embed_prompts(model, [[7, 8, 9, 10, 11], [3, 4, 5, 6]]))
    layer = batch._cache.layers[0]
    layer.keys[1], layer.values[1] = torch.nan, torch.nan
    before = layer.keys.untyped_storage().data_ptr()
    batch.keep_rows([0])
    batch.append_rows(DecodeBatch(model, embed_prompts(model, [[12, 13]])))
    batch.append_tokens([20, 21])
    assert layer.keys.untyped_storage().data_ptr() == before
    for row, logits in zip([[7, 8, 9, 10, 11, 20], [12, 13, 21]], batch.logits, strict=True):
        torch.testing.assert_close(logits, model(torch.tensor([row])).logits[0, -1], atol=1e-5, rtol=1e-4)
