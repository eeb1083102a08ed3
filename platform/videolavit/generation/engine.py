"""Continuous batching: requests join and leave a running batch of a language model between two tokens."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .decoding import DecodeBatch, Sampler, Sampling, TokenPolicy, guided, pad_prompts
from .prefix_cache import PrefixCache

GATHER_SECONDS = 0.05
"""Least time between two readings of prompts while others are written: these stand still for each reading, and many
prompts take hardly longer than one."""


class Stopped(Exception):
    """The writing was cancelled, or its engine was closed."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """What is to be written behind a prompt.

    Args:
        prompt: Embeddings [length, hidden].
        policy: Which ids may come, and how many.
        sampling: How they are chosen.
        generator: For that choice.
        guidance: As for `decoding.steps`.
        on_token: Called in the engine's thread with each id, the end not among them.
        on_end: Called there once, with what went wrong or None.
        owner: Whose it is; see `PrefixCache.find`.
    """

    prompt: Tensor
    policy: TokenPolicy
    sampling: Sampling
    generator: torch.Generator
    guidance: float | None
    on_token: Callable[[int], None]
    on_end: Callable[[BaseException | None], None]
    owner: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def rows(self) -> int:
        """Rows of the batch that it takes: guidance doubles it."""
        return 1 if self.guidance is None else 2


class Engine:
    """A thread that writes passages, as many at once as there is room for; in order of arrival.

    What is written for a passage depends on its own prompt and generator only, up to rounding.

    Args:
        model: Used by this thread alone from now on.
        max_rows: Rows of the batch.
        prefix_tokens: Ids of prompts whose keys and values are kept for prompts that begin alike.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int = 64, prefix_tokens: int = 0) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2, a guided passage's, not {max_rows}")
        self._model, self._max_rows = model, max_rows
        self._prefixes = PrefixCache(prefix_tokens)
        self._waiting: deque[EngineRequest] = deque()
        self._active: list[_ActiveRequest] = []
        self._reader: DecodeBatch | None = None
        self._closed = False
        self._next_reading = 0.0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="language model", daemon=True)
        self._thread.start()

    def submit(self, passage: EngineRequest) -> None:
        """Hands a passage over; returns at once. Raises Stopped if the engine was closed."""
        with self._news:
            if self._closed:
                raise Stopped("the language model was shut down")
            self._waiting.append(passage)
            self._news.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Passages being written, and passages that wait."""
        return len(self._active), len(self._waiting)

    def close(self) -> None:
        """Ends what is being written, and the thread."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._drop([one for one in self._active if one.passage.cancelled.is_set()], Stopped("cancelled"))
                self._step()
            except Exception as error:  # whatever a model raises must reach those who wait, and end nobody else
                self._drop(list(self._active), error)
        self._drop(list(self._active), Stopped("the language model was shut down"))
        for passage in self._waiting:
            passage.on_end(Stopped("the language model was shut down"))

    def _wait(self) -> bool:
        with self._news:
            self._news.wait_for(lambda: self._closed or self._waiting or self._active)
            return not self._closed

    def _admit(self) -> None:
        """Reads the prompts of waiting passages in one go and joins them to the batch."""
        if not self._waiting or (self._active and time.monotonic() < self._next_reading):
            return
        room = self._max_rows - sum(one.passage.rows for one in self._active)
        new: list[EngineRequest] = []
        with self._news:
            while self._waiting and self._waiting[0].rows <= room:
                passage = self._waiting.popleft()
                if passage.cancelled.is_set():
                    passage.on_end(Stopped("cancelled"))
                    continue
                new.append(passage)
                room -= passage.rows
        if not new:
            return
        self._next_reading = time.monotonic() + GATHER_SECONDS
        try:
            reader = self._read(new)
            if self._reader is None:
                self._reader = reader
            else:
                self._reader.join(reader)
        except Exception as error:
            for passage in new:
                passage.on_end(error)
            if self._reader is None or len(self._reader.logits) != sum(one.passage.rows for one in self._active):
                raise  # the batch itself was damaged
            return
        self._active += [_ActiveRequest(one, self._model.device) for one in new]

    def _read(self, passages: Sequence[EngineRequest]) -> DecodeBatch:
        """Reads prompts, without what is known of them."""
        prompts = [(one, prompt) for one in passages for prompt in (one.prompt, one.prompt[-1:])[: one.rows]]
        beginnings = [self._prefixes.find(prompt, one.owner) for one, prompt in prompts]
        rests = [prompt[found.length :] for (_, prompt), found in zip(prompts, beginnings, strict=True)]
        reader = DecodeBatch(self._model, pad_prompts(rests), [found.known for found in beginnings])
        for row, found in enumerate(beginnings):
            self._prefixes.keep(found, reader, row)
        return reader

    def _step(self) -> None:
        """Chooses an id for each passage, and has the model read them."""
        if self._reader is None:
            return
        tokens = self._choose(self._reader.logits.float())
        ended = [one for one, token in zip(self._active, tokens, strict=True) if token is None or one.is_full]
        going = [token for one, token in zip(self._active, tokens, strict=True) if one not in ended]
        self._drop(ended, None)
        if self._reader is not None:
            pairs = zip(self._active, going, strict=True)
            self._reader.feed([token for one, token in pairs if token is not None for _ in range(one.passage.rows)])

    def _choose(self, logits: Tensor) -> list[int | None]:
        """The next id of each passage, None for its end. Those that take the best id are served together."""
        best: dict[tuple[TokenPolicy, bool], list[int]] = defaultdict(list)
        chosen: list[int] = [0] * len(self._active)
        firsts = _firsts(self._active)
        for index, (writing, (first, end)) in enumerate(zip(self._active, pairwise(firsts), strict=True)):
            if writing.takes_best:
                best[writing.passage.policy, writing.may_end].append(index)
            else:
                chosen[index] = writing.draw(F.log_softmax(logits[first:end], dim=-1))
        for indices in best.values():
            options = self._active[indices[0]].options
            picks = logits[[firsts[index] for index in indices]][:, options].argmax(1)
            for index, token in zip(indices, options[picks].tolist(), strict=True):
                chosen[index] = token
        return [writing.take(token) for writing, token in zip(self._active, chosen, strict=True)]

    def _drop(self, leaving: Sequence[_ActiveRequest], why: BaseException | None) -> None:
        """Takes passages out of the batch and tells them."""
        if not leaving:
            return
        rows_of = {one: range(*ends) for one, ends in zip(self._active, pairwise(_firsts(self._active)), strict=True)}
        self._active = _closed_up(self._active, leaving)
        rows = [row for one in self._active for row in rows_of[one]]
        try:
            if not rows:
                self._reader = None
            elif self._reader is not None:
                self._reader.keep(rows)
        finally:  # they have left, whatever becomes of the others
            for one in leaving:
                one.passage.on_end(why)


class _ActiveRequest:
    """A passage as it grows."""

    def __init__(self, passage: EngineRequest, device: torch.device) -> None:
        self.passage = passage
        self._ids = passage.policy.ids(device)
        self._choose = Sampler(passage.sampling, passage.generator)
        self._count = 0

    @property
    def is_full(self) -> bool:
        return self._count >= self.passage.policy.max_new

    @property
    def takes_best(self) -> bool:
        """Whether the best id is taken as it is."""
        return self.passage.guidance is None and self.passage.sampling.temperature == 0

    @property
    def may_end(self) -> bool:
        return self._count >= self.passage.policy.min_new

    @property
    def options(self) -> Tensor:
        """Ids that may come next."""
        return self._ids if self.may_end else self._ids[:-1]

    def draw(self, scores: Tensor) -> int:
        """An id out of the log-probabilities [rows, vocabulary] of the passage's rows."""
        guidance = self.passage.guidance
        row = scores[0] if guidance is None else guided(scores[0], scores[1], guidance)
        return int(self.options[self._choose(row[self.options])])

    def take(self, token: int) -> int | None:
        """Hands an id on; None if it is the end."""
        if token == self.passage.policy.end:
            return None
        self._count += 1
        self.passage.on_token(token)
        return token


def _closed_up(active: Sequence[_ActiveRequest], leaving: Sequence[_ActiveRequest]) -> list[_ActiveRequest]:
    """Those that stay. Where it can be, the last take the places that become free: all others need not be moved."""
    staying = [one for one in active if one not in leaving]
    if len({one.passage.rows for one in active}) > 1:
        return staying
    last = [one for one in active[len(staying) :] if one not in leaving]
    return [last.pop() if one in leaving else one for one in active[: len(staying)]]


def _firsts(active: Sequence[_ActiveRequest]) -> list[int]:
    """The first row of each passage, and the number of all rows."""
    firsts = [0]
    for one in active:
        firsts.append(firsts[-1] + one.passage.rows)
    return firsts
