"""What prompts begin with is read once, and what is then written is the same."""

import threading

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.generation.decoding import GREEDY, DecodeBatch, TokenPolicy, decode, embed_prompts, pad_prompts
from videolavit.generation.engine import Engine, EngineRequest
from videolavit.generation.prefix_cache import BLOCK_TOKENS, PrefixCache

WORDS = 50
START = [3 + number % 40 for number in range(2 * BLOCK_TOKENS + 5)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_hidden_layers=2, **sizes)).eval()


def _embedded(model: LlamaForCausalLM, prompt: list[int]) -> torch.Tensor:
    return embed_prompts(model, [prompt]).embeds[0]


def _read(
    model: LlamaForCausalLM, prefixes: PrefixCache, prompts: list[list[int]], owner: str = ""
) -> tuple[DecodeBatch, int]:
    """A batch of prompts as an engine has it, and the number of ids that it had to read."""
    embedded = [_embedded(model, prompt) for prompt in prompts]
    found = [prefixes.find(prompt, owner) for prompt in embedded]
    rests = [prompt[one.length :] for prompt, one in zip(embedded, found, strict=True)]
    batch = DecodeBatch(model, pad_prompts(rests), [one.keys_values for one in found])
    for row, one in enumerate(found):
        prefixes.add(one, batch, row)
    return batch, sum(map(len, rests))


def _check(model: LlamaForCausalLM, batch: DecodeBatch, prompts: list[list[int]]) -> None:
    for prompt, logits in zip(prompts, batch.logits, strict=True):
        torch.testing.assert_close(logits, model(torch.tensor([prompt])).logits[0, -1], atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_rows_that_begin_alike_elsewhere_and_nowhere(model: LlamaForCausalLM) -> None:
    """Beginnings and rests of all lengths in one batch, which then grows and loses a row."""
    prefixes = PrefixCache(32 * BLOCK_TOKENS)
    first, count = _read(model, prefixes, [[*START, 7, 8, 9]])
    assert count == len(START) + 3
    _check(model, first, [[*START, 7, 8, 9]])
    prompts = [
        [*START, 11],
        [*START[: BLOCK_TOKENS + 3], *range(10, 40)],
        [5, 6],
        [*START, *range(3, 45)],
        START[: 2 * BLOCK_TOKENS],
    ]
    batch, count = _read(model, prefixes, prompts)
    assert (
        count == (5 + 1) + (3 + 30) + 2 + (5 + 42) + BLOCK_TOKENS
    )  # of a prompt that is known, the last block is read
    _check(model, batch, prompts)
    batch.append_rows(first)
    prompts.append([*START, 7, 8, 9])
    for token in range(10, 14):
        batch.append_tokens([token] * len(prompts))
        prompts = [[*prompt, token] for prompt in prompts]
    _check(model, batch, prompts)
    batch.keep_rows([0, 2, 4, 5])
    prompts = [prompts[row] for row in (0, 2, 4, 5)]
    batch.append_tokens([20, 21, 22, 23])
    prompts = [[*prompt, token] for prompt, token in zip(prompts, (20, 21, 22, 23), strict=True)]
    _check(model, batch, prompts)
    # what was read behind a known beginning is known as well
    assert _read(model, prefixes, [[*START, *range(3, 45)]])[1] == (len(START) + 42) % BLOCK_TOKENS


@torch.inference_mode()
def test_owners_share_nothing(model: LlamaForCausalLM) -> None:
    prefixes = PrefixCache(32 * BLOCK_TOKENS)
    assert [_read(model, prefixes, [START], owner)[1] for owner in ("a", "b", "a")] == [len(START), len(START), 5]


@torch.inference_mode()
def test_what_was_not_used_for_longest_is_forgotten(model: LlamaForCausalLM) -> None:
    prefixes = PrefixCache(4 * BLOCK_TOKENS)
    one, other = ([word] * (2 * BLOCK_TOKENS + 1) for word in (7, 8))
    assert [_read(model, prefixes, [prompt])[1] for prompt in (one, other, one)] == [65, 65, 1]
    _read(
        model, prefixes, [[9] * (BLOCK_TOKENS + 1)]
    )  # takes the place of the end of `other`, whose start is still known
    assert [_read(model, prefixes, [prompt])[1] for prompt in (one, other)] == [1, BLOCK_TOKENS + 1]
    long = list(range(3, 43)) * 5  # longer than all there is room for
    assert [_read(model, prefixes, [long])[1] for _ in range(2)] == [200, 200 - 4 * BLOCK_TOKENS]


def test_an_engine_reads_less_and_writes_the_same(model: LlamaForCausalLM) -> None:
    policy = TokenPolicy((range(WORDS),), WORDS - 1, 12, 12)
    prompts = [[*START, *range(4, 4 + number)] for number in (1, 9, 3, 20, 2)]
    engine = Engine(model, 4, prefix_tokens=8 * BLOCK_TOKENS)
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[1]) if "inputs_embeds" in given else None,
        with_kwargs=True,
    )
    for number, prompt in enumerate(prompts * 2):
        read.clear()
        ids: list[int] = []
        errors: list[BaseException | None] = []
        end = threading.Event()

        def on_end(
            error: BaseException | None, errors: list[BaseException | None] = errors, end: threading.Event = end
        ) -> None:
            errors.append(error)
            end.set()

        with torch.inference_mode():
            embedded = _embedded(model, prompt)
        engine.submit(EngineRequest(embedded, policy, GREEDY, torch.Generator(), None, ids.append, on_end))
        assert end.wait(30)
        assert errors == [None]
        assert read == [
            len(prompt) if number == 0 else len(prompt) - len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS or BLOCK_TOKENS
        ]
        assert ids == decode(model, embed_prompts(model, [prompt]), policy, [GREEDY], [torch.Generator()])[0]
    engine.close()
