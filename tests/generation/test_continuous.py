"""Continuous batching: what is written for a request does not depend on who else is in the batch."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from transformers import PreTrainedModel

from videolavit.generation.decoding import GREEDY, DecodeBatch, Sampling, TokenPolicy, decode, embed_prompts
from videolavit.generation.engine import Engine, EngineRequest, Stopped
from videolavit.models.folder import ModelFolder

MODEL = ModelFolder("tiny")
IDS = MODEL.vocabulary
POLICY = TokenPolicy((IDS.visual_range,), IDS.image_end, 4, 24)
ENDLESS = TokenPolicy((IDS.visual_range,), IDS.image_end, 2000, 2000)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = MODEL.load("language_model")
    return loaded


@dataclass
class Told:
    """What an engine tells of a passage."""

    ids: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        assert not self.ended.is_set()
        self.error = error
        self.ended.set()


def passage(
    model: PreTrainedModel,
    length: int,
    seed: int,
    told: Told,
    policy: TokenPolicy = POLICY,
    sampling: Sampling = GREEDY,
    guidance: float | None = None,
) -> EngineRequest:
    with torch.inference_mode():
        prompt = embed_prompts(model, [list(range(3, 3 + length))]).embeds[0]
    draws = torch.Generator().manual_seed(seed)
    return EngineRequest(prompt, policy, sampling, draws, guidance, told.ids.append, told.end)


LENGTHS = (5, 9, 2, 30, 12, 7, 3, 18)
SAMPLING = (GREEDY, Sampling(top_k=50), Sampling(temperature=0.7, top_k=None, top_p=0.9))
GUIDANCE = (None, 2.0)


def test_each_passage_is_what_it_would_be_alone(model: PreTrainedModel) -> None:
    alone = [
        decode(
            model,
            embed_prompts(model, [list(range(3, 3 + length))]),
            POLICY,
            [SAMPLING[number % 3]],
            [torch.Generator().manual_seed(number)],
            GUIDANCE[number % 2],
        )[0]
        for number, length in enumerate(LENGTHS)
    ]
    engine = Engine(model, max_rows=6)  # too few for all: some wait
    told = [Told() for _ in LENGTHS]
    for number, (length, one) in enumerate(zip(LENGTHS, told, strict=True)):
        sampling, guidance = SAMPLING[number % 3], GUIDANCE[number % 2]
        engine.submit(passage(model, length, number, one, sampling=sampling, guidance=guidance))
        time.sleep(0.004 * (number % 3))
    assert all(one.ended.wait(30) for one in told)
    engine.close()
    assert [one.ids for one in told] == alone
    assert all(one.error is None for one in told)


def test_a_cancelled_passage_leaves_and_the_others_go_on(model: PreTrainedModel) -> None:
    engine = Engine(model)
    leaving, staying = Told(), Told()
    first = passage(model, 5, 0, leaving, ENDLESS)
    engine.submit(first)
    engine.submit(passage(model, 9, 1, staying, ENDLESS))
    while len(staying.ids) < 10:
        time.sleep(0.005)
    first.cancelled.set()
    assert leaving.ended.wait(10)
    assert isinstance(leaving.error, Stopped)
    reached = len(staying.ids)
    while len(staying.ids) < reached + 20:
        time.sleep(0.005)
    assert not staying.ended.is_set()
    assert engine.load == (1, 0)
    engine.close()
    assert isinstance(staying.error, Stopped)
    with pytest.raises(Stopped):
        engine.submit(first)


def test_few_rows_move_when_one_leaves(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is a part of every layer's keys and values, and others leave at every other step."""
    kept: list[Sequence[int]] = []
    keep = DecodeBatch.keep
    monkeypatch.setattr(DecodeBatch, "keep", lambda reader, rows: (kept.append(rows), keep(reader, rows)))
    engine = Engine(model)
    told = [Told() for _ in range(5)]
    passages = [passage(model, 5, number, one, ENDLESS) for number, one in enumerate(told)]
    for one in passages:
        engine.submit(one)
    while min(len(one.ids) for one in told) < 5:
        time.sleep(0.005)
    passages[1].cancelled.set()
    assert told[1].ended.wait(10)
    assert kept == [[0, 4, 2, 3]]
    engine.close()


def test_a_prompt_that_breaks_the_model_breaks_nobody_else(model: PreTrainedModel) -> None:
    engine = Engine(model)
    fine, broken = Told(), Told()
    engine.submit(passage(model, 5, 0, fine))
    whole = passage(model, 5, 0, broken)
    narrow = EngineRequest(whole.prompt[:, :3], POLICY, GREEDY, whole.generator, None, broken.ids.append, broken.end)
    engine.submit(narrow)
    assert broken.ended.wait(10)
    assert broken.error is not None
    assert fine.ended.wait(10)
    later = Told()
    engine.submit(passage(model, 5, 0, later))
    assert later.ended.wait(10)
    assert later.ids == fine.ids if fine.error is None else len(later.ids) >= 4
    engine.close()
