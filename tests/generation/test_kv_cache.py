"""KV cache: tokens are appended in place, and adding or removing rows changes no other row."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.generation.decoding import DecodeBatch, embed_prompts
from videolavit.generation.kv_cache import SPARE_TOKENS

VOCABULARY = 50


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, **sizes)).eval()


@torch.inference_mode()
def test_added_and_removed_rows_change_no_other_row(model: LlamaForCausalLM) -> None:
    """Over more tokens than the first buffer has space for."""
    rows = [list(range(3, 3 + length)) for length in (4, 9, 30)]
    batch = DecodeBatch(model, embed_prompts(model, rows[:2]))
    random = torch.Generator().manual_seed(1)

    def append(count: int) -> None:
        for _ in range(count):
            ids = torch.randint(VOCABULARY, (len(rows),), generator=random).tolist()
            for row, token in zip(rows, ids, strict=True):
                row.append(token)
            batch.append_tokens(ids)

    def check() -> None:
        for row, logits in zip(rows, batch.logits, strict=True):
            expected = model(torch.tensor([row])).logits[0, -1]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)

    late = rows.pop()
    append(SPARE_TOKENS + 5)
    check()
    rows.append(late)
    batch.append_rows(DecodeBatch(model, embed_prompts(model, [late])))
    check()
    append(SPARE_TOKENS + 5)
    check()
    batch.keep_rows([2, 1])  # the last row moves to the place of the first
    rows = [rows[2], rows[1]]
    append(2)
    check()
    batch.keep_rows([0])  # which also drops the padding that only the other row needed
    del rows[1]
    append(3 * SPARE_TOKENS)
    check()


@torch.inference_mode()
def test_a_token_is_appended_in_place(model: LlamaForCausalLM) -> None:
    batch = DecodeBatch(model, embed_prompts(model, [[3, 4, 5]]))
    addresses = []
    for token in range(SPARE_TOKENS):
        batch.append_tokens([token % VOCABULARY])
        addresses.append(batch._cache.layers[1].keys.data_ptr())
    assert len(set(addresses)) == 1
    batch.append_tokens([1])
    assert batch._cache.layers[1].keys.data_ptr() != addresses[0]


@torch.inference_mode()
def test_a_new_row_reuses_a_removed_one_without_its_values(model: LlamaForCausalLM) -> None:
    """Not even if they were NaN."""
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
