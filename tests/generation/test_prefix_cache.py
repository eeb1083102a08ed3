"""Prefix cache: cached prefixes need no prefill, and change no result."""

import threading

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.generation.decoding import GREEDY, DecodeBatch, TokenPolicy, decode, embed_prompts, pad_prompts
from videolavit.generation.engine import Engine, EngineRequest
from videolavit.generation.prefix_cache import BLOCK_TOKENS, PrefixCache

VOCABULARY = 50
PREFIX = [3 + number % 40 for number in range(2 * BLOCK_TOKENS + 5)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, **sizes)).eval()


def _embed(model: LlamaForCausalLM, prompt: list[int]) -> torch.Tensor:
    return embed_prompts(model, [prompt]).embeds[0]


def _prefill(
    model: LlamaForCausalLM, prefixes: PrefixCache, prompts: list[list[int]], owner: str = ""
) -> tuple[DecodeBatch, int]:
    """Prefills prompts as an engine does; returns the batch and the number of tokens that needed prefill."""
    embedded = [_embed(model, prompt) for prompt in prompts]
    found = [prefixes.find(prompt, owner) for prompt in embedded]
    remainders = [prompt[one.length :] for prompt, one in zip(embedded, found, strict=True)]
    batch = DecodeBatch(model, pad_prompts(remainders), [one.keys_values for one in found])
    for row, one in enumerate(found):
        prefixes.add(one, batch, row)
    return batch, sum(map(len, remainders))


def _check(model: LlamaForCausalLM, batch: DecodeBatch, prompts: list[list[int]]) -> None:
    for prompt, logits in zip(prompts, batch.logits, strict=True):
        torch.testing.assert_close(logits, model(torch.tensor([prompt])).logits[0, -1], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_prompts_with_and_without_a_cached_prefix(model: LlamaForCausalLM) -> None:
    """Prefixes and remainders of all lengths in one batch, which then gets more tokens and loses rows."""
    prefixes = PrefixCache(32 * BLOCK_TOKENS)
    first, count = _prefill(model, prefixes, [[*PREFIX, 7, 8, 9]])
    assert count == len(PREFIX) + 3
    _check(model, first, [[*PREFIX, 7, 8, 9]])
    prompts = [
        [*PREFIX, 11],
        [*PREFIX[: BLOCK_TOKENS + 3], *range(10, 40)],
        [5, 6],
        [*PREFIX, *range(3, 45)],
        PREFIX[: 2 * BLOCK_TOKENS],
    ]
    batch, count = _prefill(model, prefixes, prompts)
    assert (
        count == (5 + 1) + (3 + 30) + 2 + (5 + 42) + BLOCK_TOKENS
    )  # the last block of a prompt that is cached whole needs prefill
    _check(model, batch, prompts)
    batch.append_rows(first)
    prompts.append([*PREFIX, 7, 8, 9])
    for token in range(10, 14):
        batch.append_tokens([token] * len(prompts))
        prompts = [[*prompt, token] for prompt in prompts]
    _check(model, batch, prompts)
    batch.keep_rows([0, 2, 4, 5])
    prompts = [prompts[row] for row in (0, 2, 4, 5)]
    batch.append_tokens([20, 21, 22, 23])
    prompts = [[*prompt, token] for prompt, token in zip(prompts, (20, 21, 22, 23), strict=True)]
    _check(model, batch, prompts)
    # blocks after a cached prefix are cached as well
    assert _prefill(model, prefixes, [[*PREFIX, *range(3, 45)]])[1] == (len(PREFIX) + 42) % BLOCK_TOKENS


@torch.inference_mode()
def test_owners_share_no_blocks(model: LlamaForCausalLM) -> None:
    prefixes = PrefixCache(32 * BLOCK_TOKENS)
    assert [_prefill(model, prefixes, [PREFIX], owner)[1] for owner in ("a", "b", "a")] == [len(PREFIX), len(PREFIX), 5]


@torch.inference_mode()
def test_the_least_recently_used_blocks_are_evicted(model: LlamaForCausalLM) -> None:
    prefixes = PrefixCache(4 * BLOCK_TOKENS)
    one, other = ([word] * (2 * BLOCK_TOKENS + 1) for word in (7, 8))
    assert [_prefill(model, prefixes, [prompt])[1] for prompt in (one, other, one)] == [65, 65, 1]
    _prefill(model, prefixes, [[9] * (BLOCK_TOKENS + 1)])  # evicts the last block of `other`, but not the first
    assert [_prefill(model, prefixes, [prompt])[1] for prompt in (one, other)] == [1, BLOCK_TOKENS + 1]
    long = list(range(3, 43)) * 5  # longer than the capacity
    assert [_prefill(model, prefixes, [long])[1] for _ in range(2)] == [200, 200 - 4 * BLOCK_TOKENS]


def test_an_engine_prefills_less_and_generates_the_same(model: LlamaForCausalLM) -> None:
    policy = TokenPolicy((range(VOCABULARY),), VOCABULARY - 1, 12, 12)
    prompts = [[*PREFIX, *range(4, 4 + number)] for number in (1, 9, 3, 20, 2)]
    engine = Engine(model, 4, prefix_tokens=8 * BLOCK_TOKENS)
    prefilled: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: prefilled.append(given["inputs_embeds"].shape[1]) if "inputs_embeds" in given else None,
        with_kwargs=True,
    )
    for number, prompt in enumerate(prompts * 2):
        prefilled.clear()
        ids: list[int] = []
        errors: list[BaseException | None] = []
        end = threading.Event()

        def on_end(
            error: BaseException | None, errors: list[BaseException | None] = errors, end: threading.Event = end
        ) -> None:
            errors.append(error)
            end.set()

        with torch.inference_mode():
            embedded = _embed(model, prompt)
        engine.submit(EngineRequest(embedded, policy, GREEDY, torch.Generator(), None, ids.append, on_end))
        assert end.wait(30)
        assert errors == [None]
        assert prefilled == [
            len(prompt) if number == 0 else len(prompt) - len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS or BLOCK_TOKENS
        ]
        assert ids == decode(model, embed_prompts(model, [prompt]), policy, [GREEDY], [torch.Generator()])[0]
    engine.close()
