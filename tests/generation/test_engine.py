"""Continuous batching: the tokens of a request do not depend on the other requests of the batch."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from videolavit.generation.decoding import GREEDY, DecodeBatch, Sampling, TokenPolicy, decode, embed_prompts
from videolavit.generation.engine import Engine, EngineRequest, RequestAborted
from videolavit.models.folder import ModelFolder

MODEL = ModelFolder("tiny")
IDS = MODEL.vocabulary
POLICY = TokenPolicy((IDS.visual_range,), IDS.image_end, 4, 24)
ENDLESS = TokenPolicy((IDS.visual_range,), IDS.image_end, 2000, 2000)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = MODEL.load("language_model")
    for weight in loaded.parameters():
        if weight.ndim == 2:
            weight.mul_(2)  # with weights as drawn, a token hardly depends on the tokens before it
    return loaded


@dataclass
class Result:
    """Tokens of a request, and how it ended."""

    ids: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()


def engine_request(
    model: PreTrainedModel,
    length: int,
    seed: int,
    result: Result,
    policy: TokenPolicy = POLICY,
    sampling: Sampling = GREEDY,
    guidance: float | None = None,
) -> EngineRequest:
    with torch.inference_mode():
        prompt = embed_prompts(model, [list(range(3, 3 + length))]).embeds[0]
    random = torch.Generator().manual_seed(seed)
    return EngineRequest(prompt, policy, sampling, random, guidance, result.ids.append, result.end)


def decode_alone(
    model: PreTrainedModel,
    length: int,
    seed: int = 0,
    policy: TokenPolicy = POLICY,
    sampling: Sampling = GREEDY,
    guidance: float | None = None,
) -> list[int]:
    prompts = embed_prompts(model, [list(range(3, 3 + length))])
    return decode(model, prompts, policy, [sampling], [torch.Generator().manual_seed(seed)], guidance)[0]


LENGTHS = (5, 9, 2, 30, 12, 7, 3, 18)
SAMPLING = (GREEDY, Sampling(top_k=50), Sampling(temperature=0.7, top_k=None, top_p=0.9))
GUIDANCE = (None, 2.0)


def test_requests_of_a_batch_equal_single_ones(model: PreTrainedModel) -> None:
    settings = [(SAMPLING[number % 3], GUIDANCE[number % 2]) for number in range(len(LENGTHS))]
    engine = Engine(model, max_rows=6)  # too few for all: some requests wait
    results = [Result() for _ in LENGTHS]
    for number, (length, result, (sampling, guidance)) in enumerate(zip(LENGTHS, results, settings, strict=True)):
        engine.submit(engine_request(model, length, number, result, sampling=sampling, guidance=guidance))
        time.sleep(0.004 * (number % 3))
    assert all(result.ended.wait(30) for result in results)
    engine.close()
    assert all(result.error is None for result in results)
    assert [result.ids for result in results] == [
        decode_alone(model, length, number, POLICY, sampling, guidance)
        for number, (length, (sampling, guidance)) in enumerate(zip(LENGTHS, settings, strict=True))
    ]


def test_a_finished_request_changes_no_other(model: PreTrainedModel) -> None:
    """Requests in the middle of the batch finish first, and the last ones take their rows."""
    policies = [TokenPolicy((IDS.visual_range,), IDS.image_end, number, number) for number in (20, 3, 7, 24, 18, 22)]
    engine = Engine(model)
    results = [Result() for _ in policies]
    requests = [
        engine_request(model, length, 0, result, policy)
        for length, result, policy in zip(LENGTHS, results, policies, strict=False)
    ]
    for request in requests:
        engine.submit(request)
    assert all(result.ended.wait(30) for result in results)
    engine.close()
    assert all(result.error is None for result in results)
    assert [result.ids for result in results] == [
        decode_alone(model, length, policy=policy) for length, policy in zip(LENGTHS, policies, strict=False)
    ]


def test_a_cancelled_request_leaves_and_the_others_go_on(model: PreTrainedModel) -> None:
    engine = Engine(model)
    leaving, staying = Result(), Result()
    first = engine_request(model, 5, 0, leaving, ENDLESS)
    engine.submit(first)
    engine.submit(engine_request(model, 9, 1, staying, ENDLESS))
    while len(staying.ids) < 10:
        time.sleep(0.005)
    first.cancelled.set()
    assert leaving.ended.wait(10)
    assert isinstance(leaving.error, RequestAborted)
    reached = len(staying.ids)
    while len(staying.ids) < reached + 20:
        time.sleep(0.005)
    assert not staying.ended.is_set()
    assert engine.load == (1, 0)
    engine.close()
    assert isinstance(staying.error, RequestAborted)
    with pytest.raises(RequestAborted):
        engine.submit(first)


def test_few_rows_move_when_a_request_leaves(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is a part of the keys and values of every layer, and requests leave at every other step."""
    kept: list[Sequence[int]] = []
    keep_rows = DecodeBatch.keep_rows
    monkeypatch.setattr(DecodeBatch, "keep_rows", lambda batch, rows: (kept.append(rows), keep_rows(batch, rows)))
    engine = Engine(model)
    results = [Result() for _ in range(5)]
    requests = [engine_request(model, 5, number, result, ENDLESS) for number, result in enumerate(results)]
    for request in requests:
        engine.submit(request)
    while min(len(result.ids) for result in results) < 5:
        time.sleep(0.005)
    requests[1].cancelled.set()
    assert results[1].ended.wait(10)
    assert kept == [[0, 4, 2, 3]]
    engine.close()


def test_a_prompt_that_fails_ends_no_other_request(model: PreTrainedModel) -> None:
    engine = Engine(model)
    fine, broken = Result(), Result()
    engine.submit(engine_request(model, 5, 0, fine))
    whole = engine_request(model, 5, 0, broken)
    narrow = EngineRequest(whole.prompt[:, :3], POLICY, GREEDY, whole.generator, None, broken.ids.append, broken.end)
    engine.submit(narrow)
    assert broken.ended.wait(10)
    assert broken.error is not None
    assert fine.ended.wait(10)
    later = Result()
    engine.submit(engine_request(model, 5, 0, later))
    assert later.ended.wait(10)
    assert later.ids == fine.ids if fine.error is None else len(later.ids) >= 4
    engine.close()
