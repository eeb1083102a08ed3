"""Decoding, compared with whole forward passes without a cache."""

import pytest
import torch
from transformers import LlamaForCausalLM

from videolavit.generation.decoding import GREEDY, Sampling, TokenPolicy, decode, decode_steps, embed_prompts
from videolavit.models.language_model import LanguageModelConfig
from videolavit.vocabulary import Vocabulary

IDS = Vocabulary(text_size=20, visual_codes=8, motion_codes=6)
PICTURE = TokenPolicy((IDS.visual_range,), IDS.image_end, 2, 12)
TOLERANCE = 2e-4
"""Tolerance of guided log-probabilities in float32: guidance multiplies their differences."""

RAGGED = [[5, 9, IDS.image_start], [IDS.image_start], [3, 4, 5, 6, 7, 8, 9, 2, 3, IDS.image_start]]


@pytest.fixture(scope="module")
def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        text_size=IDS.text_size,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        max_positions=128,
    )
    model = LlamaForCausalLM(config.llama(IDS.size)).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(1.6)  # with the initial weights, the logits hardly depend on the context
    return model


def _seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _decode(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    seeds: list[int],
    policy: TokenPolicy = PICTURE,
    sampling: Sampling | None = None,
    guidance: float | None = None,
) -> list[list[int]]:
    sampled = [sampling or Sampling(top_k=None)] * len(prompts)
    return decode(model, embed_prompts(model, prompts), policy, sampled, _seeded(*seeds), guidance)


def _forward(model: LlamaForCausalLM, prompt: list[int], generated: list[int], guidance: float | None) -> torch.Tensor:
    """Log-probabilities of the next id, from one or two whole forward passes."""
    conditional = model(torch.tensor([prompt + generated])).logits[0, -1].log_softmax(-1)
    if guidance is None:
        return conditional
    unconditional = model(torch.tensor([prompt[-1:] + generated])).logits[0, -1].log_softmax(-1)
    return unconditional + guidance * (conditional - unconditional)


@pytest.mark.parametrize("guidance", [None, 1.0, 4.0])
def test_a_padded_batch_with_a_cache_equals_whole_forward_passes(
    language_model: LlamaForCausalLM, guidance: float | None
) -> None:
    prompts, policy = (
        embed_prompts(language_model, RAGGED),
        TokenPolicy((IDS.visual_range,), IDS.image_end, 8, 8),
    )
    rows: list[list[int]] = [[] for _ in RAGGED]
    for step in decode_steps(language_model, prompts, policy, [GREEDY] * 3, _seeded(0, 0, 0), guidance):
        for row, (prompt, chosen, token) in enumerate(zip(RAGGED, rows, step.ids, strict=True)):
            expected = _forward(language_model, prompt, chosen, guidance)
            assert (step.log_probs[row] - expected).abs().max() < TOLERANCE
            best = expected[IDS.visual_range.start : IDS.visual_range.stop].argmax()
            assert token == IDS.visual_range.start + int(best)
            chosen.append(token)
    assert [len(row) for row in rows] == [8, 8, 8]
    assert len({tuple(row) for row in rows}) == 3  # the prompts matter


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_samples_of_a_batch_equal_single_ones(language_model: LlamaForCausalLM, guidance: float | None) -> None:
    prompts, seeds = RAGGED * 4, list(range(12))
    batch = _decode(language_model, prompts, seeds, guidance=guidance)
    alone = [
        _decode(language_model, [prompt], [seed], guidance=guidance)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert batch == alone
    assert len({len(row) for row in batch}) > 3  # some rows end earlier than others


def test_ids_and_lengths_keep_to_the_policy(language_model: LlamaForCausalLM) -> None:
    rows = _decode(language_model, [RAGGED[0]] * 40, list(range(40)))
    assert {len(row) for row in rows} >= {PICTURE.min_new, PICTURE.max_new}
    assert all(PICTURE.min_new <= len(row) <= PICTURE.max_new for row in rows)
    assert {token for row in rows for token in row} == set(IDS.visual_range)


def test_an_exact_length(language_model: LlamaForCausalLM) -> None:
    policy = TokenPolicy((IDS.motion_range,), IDS.motion_end, 9, 9)
    rows = _decode(language_model, [RAGGED[0]] * 10, list(range(10)), policy)
    assert {len(row) for row in rows} == {9}
    assert {token for row in rows for token in row} == set(IDS.motion_range)


def test_an_end_id_among_the_allowed_ids_is_no_part_of_the_result(language_model: LlamaForCausalLM) -> None:
    policy = TokenPolicy((range(4),), end=2, min_new=3, max_new=30)
    rows = _decode(language_model, [RAGGED[0]] * 40, list(range(40)), policy)
    assert {token for row in rows for token in row} == {0, 1, 3}
    assert min(len(row) for row in rows) == 3
    assert len({len(row) for row in rows}) > 3


def test_unconditional_rows_start_at_the_last_prompt_token(language_model: LlamaForCausalLM) -> None:
    """Guidance 0 gives the unconditional log-probabilities, guidance 1 the conditional ones."""
    texts = [[5, 9, IDS.image_start], [7, 3, IDS.image_start], [2, 2, 2, 2, 8, IDS.image_start]]
    prompts = embed_prompts(language_model, texts)
    unconditional, conditional = (
        next(decode_steps(language_model, prompts, PICTURE, [GREEDY] * 3, _seeded(0, 0, 0), guidance)).log_probs
        for guidance in (0.0, 1.0)
    )
    marker = language_model(torch.tensor([[IDS.image_start]])).logits[0, -1].log_softmax(-1)
    for row in range(3):
        assert (unconditional[row] - marker).abs().max() < TOLERANCE
    assert (conditional[0] - conditional[1]).abs().max() > 0.1
    assert (conditional[0] - conditional[2]).abs().max() > 0.1


def test_samples_depend_on_the_seed(language_model: LlamaForCausalLM) -> None:
    one, again, other = (_decode(language_model, [RAGGED[0]], [seed]) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_k=None, top_p=1e-6), Sampling(temperature=1e-5)])
def test_narrow_sampling_is_greedy(language_model: LlamaForCausalLM, sampling: Sampling) -> None:
    assert _decode(language_model, RAGGED, [1, 2, 3], sampling=sampling) == _decode(
        language_model, RAGGED, [4, 5, 6], sampling=GREEDY
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=None),
        Sampling(top_k=None, temperature=0.5),
        Sampling(top_k=None, temperature=3.0),
        Sampling(top_k=3),
        Sampling(top_k=None, top_p=0.7),
    ],
)
def test_samples_follow_the_distribution(language_model: LlamaForCausalLM, sampling: Sampling) -> None:
    count = 3000
    policy = TokenPolicy((IDS.visual_range,), IDS.image_end, 1, 1)
    rows = _decode(language_model, [RAGGED[0]] * count, list(range(count)), policy, sampling)
    shares = torch.bincount(torch.tensor(rows).flatten() - IDS.visual_range.start, minlength=8) / count
    expected = _narrowed(_forward(language_model, RAGGED[0], [], None)[IDS.visual_range], sampling)
    deviation = (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() <= 5 * deviation).all()  # and exactly 0 for ids that the settings exclude


def _narrowed(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities after temperature, top-k and top-p, by their definitions."""
    probabilities = (scores / sampling.temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    kept, share = 0, 0.0
    for index in order:
        if kept == (sampling.top_k or len(probabilities)) or share >= sampling.top_p:
            probabilities[index] = 0
        else:
            kept, share = kept + 1, share + float(probabilities[index])
    return probabilities / probabilities.sum()


def test_a_callback_receives_the_steps_and_can_stop_them(language_model: LlamaForCausalLM) -> None:
    policy = TokenPolicy((IDS.motion_range,), IDS.motion_end, 5, 5)
    prompts, steps = embed_prompts(language_model, RAGGED), []

    def stop(done: int) -> None:
        steps.append(done)
        if done == 3:
            raise KeyboardInterrupt

    decode(language_model, prompts, policy, [GREEDY] * 3, _seeded(0, 0, 0), on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5]
    with pytest.raises(KeyboardInterrupt):
        decode(language_model, prompts, policy, [GREEDY] * 3, _seeded(0, 0, 0), on_step=stop)
    assert steps[5:] == [1, 2, 3]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": 0}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature must be at least 0, top_p above 0"):
        Sampling(**wrong)
