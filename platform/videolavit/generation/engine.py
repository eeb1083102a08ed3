"""Continuous batching: requests join and leave the running batch of a language model between two decode steps."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from videolavit.models.language_model.families import has_windows

from .decoding import DecodeBatch, Sampling, TokenPolicy, TokenSampler, guide_log_probs, pad_prompts
from .prefix_cache import PrefixCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes two seconds to import

PREFILL_INTERVAL_SECONDS = 0.05
"""Shortest time between two prefills while requests are running. A prefill stalls the running requests, and takes
hardly longer for many prompts than for one."""


class RequestAborted(Exception):
    """The request was cancelled, or its engine was closed."""


@dataclass(frozen=True, eq=False)
class EngineRequest:
    """Request to generate tokens after a prompt.

    Args:
        prompt: Embeddings [length, hidden].
        policy: Constraint on the generated tokens.
        sampling: Sampling settings.
        generator: Random generator for the sampling.
        guidance: Guidance scale, see `decoding.decode_steps`; None for none.
        on_token: Called in the engine's thread with each generated id, without the end id.
        on_prefill: Called in the engine's thread with the number of tokens of the prompt that were in the prefix cache.
        on_end: Called once in the engine's thread, with the error that ended the request, or None.
        owner: Owner of the request, see `PrefixCache.find`.
        cancelled: Set by the caller to cancel the request.
    """

    prompt: Tensor
    policy: TokenPolicy
    sampling: Sampling
    generator: torch.Generator
    guidance: float | None
    on_token: Callable[[int], None]
    on_end: Callable[[BaseException | None], None]
    owner: str = ""
    on_prefill: Callable[[int], None] = lambda cached: None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def rows(self) -> int:
        """Rows of the batch that the request takes: two with guidance."""
        return 1 if self.guidance is None else 2


class Engine:
    """Thread that runs requests in one batch, as many at once as fit, first come first served.

    The tokens of a request depend on its own prompt and generator only, up to rounding.

    Args:
        model: Language model; no other thread may use it.
        max_rows: Largest number of rows of the batch.
        prefix_tokens: Capacity of the prefix cache, in tokens.
    """

    def __init__(self, model: PreTrainedModel, max_rows: int = 64, prefix_tokens: int = 0) -> None:
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2, the rows of a request with guidance, not {max_rows}")
        self._model, self._max_rows = model, max_rows
        # a cached prefix and its prompt are apart while they are read, which windows would count
        self._prefixes = PrefixCache(0 if has_windows(model) else prefix_tokens)
        self._waiting: deque[EngineRequest] = deque()
        self._running: list[_RunningRequest] = []
        self._batch: DecodeBatch | None = None
        self._closed = False
        self._next_prefill = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="language model", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        """Queues a request and returns at once. Raises RequestAborted if the engine was closed."""
        with self._changed:
            if self._closed:
                raise RequestAborted("the language model was shut down")
            self._waiting.append(request)
            self._changed.notify()

    @property
    def load(self) -> tuple[int, int]:
        """Number of running requests, and of waiting ones."""
        return len(self._running), len(self._waiting)

    def close(self) -> None:
        """Aborts all requests and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._admit()
                cancelled = [one for one in self._running if one.request.cancelled.is_set()]
                self._remove(cancelled, RequestAborted("cancelled"))
                self._step()
            except Exception as error:  # any error of a model reaches the requests in the batch, and not the later ones
                self._remove(list(self._running), error)
        self._remove(list(self._running), RequestAborted("the language model was shut down"))
        for request in self._waiting:
            request.on_end(RequestAborted("the language model was shut down"))

    def _wait_for_work(self) -> bool:
        """Returns False when the engine was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
            return not self._closed

    def _admit(self) -> None:
        """Prefills the waiting requests that fit, all at once, and adds them to the running batch."""
        if not self._waiting or (self._running and time.monotonic() < self._next_prefill):
            return
        free_rows = self._max_rows - sum(one.request.rows for one in self._running)
        new: list[EngineRequest] = []
        with self._changed:
            while self._waiting and self._waiting[0].rows <= free_rows:
                request = self._waiting.popleft()
                if request.cancelled.is_set():
                    request.on_end(RequestAborted("cancelled"))
                    continue
                new.append(request)
                free_rows -= request.rows
        if not new:
            return
        self._next_prefill = time.monotonic() + PREFILL_INTERVAL_SECONDS
        try:
            batch = self._prefill(new)
            if self._batch is None:
                self._batch = batch
            else:
                self._batch.append_rows(batch)
        except Exception as error:
            for request in new:
                request.on_end(error)
            if self._batch is None or len(self._batch.logits) != sum(one.request.rows for one in self._running):
                raise  # the running batch itself was damaged
            return
        self._running += [_RunningRequest(one, self._model.device) for one in new]

    def _prefill(self, requests: Sequence[EngineRequest]) -> DecodeBatch:
        """Prefills prompts, except for their cached prefixes."""
        # the unconditional row of a request with guidance has the last token alone as its prompt
        prompts = [(one, prompt) for one in requests for prompt in (one.prompt, one.prompt[-1:])[: one.rows]]
        prefixes = [self._prefixes.find(prompt, one.owner) for one, prompt in prompts]
        rest = [prompt[prefix.length :] for (_, prompt), prefix in zip(prompts, prefixes, strict=True)]
        batch = DecodeBatch(self._model, pad_prompts(rest), [prefix.keys_values for prefix in prefixes])
        for row, prefix in enumerate(prefixes):
            self._prefixes.add(prefix, batch, row)
        for (one, prompt), prefix in zip(prompts, prefixes, strict=True):
            if prompt is one.prompt:
                one.on_prefill(prefix.length)
        return batch

    def _step(self) -> None:
        """Samples the next token of each request, removes the finished ones, and runs the model for the others."""
        if self._batch is None:
            return
        tokens = dict(zip(self._running, self._sample(self._batch.logits.float()), strict=True))
        finished = [one for one, token in tokens.items() if not one.accept(token)]
        self._remove(finished, None)  # which changes the order of the requests that stay
        if self._batch is not None:
            self._batch.append_tokens([tokens[one] for one in self._running for _ in range(one.request.rows)])

    def _sample(self, logits: Tensor) -> list[int]:
        """Next token of each request. Greedy requests with the same policy share one argmax."""
        greedy: dict[tuple[TokenPolicy, bool], list[int]] = defaultdict(list)
        tokens = [0] * len(self._running)
        first_rows = _row_bounds(self._running)
        for index, (one, (first, end)) in enumerate(zip(self._running, pairwise(first_rows), strict=True)):
            if one.is_greedy:
                greedy[one.request.policy, one.may_end].append(index)
            else:
                tokens[index] = one.sample(F.log_softmax(logits[first:end], dim=-1))
        for indices in greedy.values():
            allowed = self._running[indices[0]].allowed
            best = logits[[first_rows[index] for index in indices]][:, allowed].argmax(1)
            for index, token in zip(indices, allowed[best].tolist(), strict=True):
                tokens[index] = token
        return tokens

    def _remove(self, leaving: Sequence[_RunningRequest], error: BaseException | None) -> None:
        """Removes requests from the batch and calls their `on_end`."""
        if not leaving:
            return
        rows_of = {
            one: range(*bounds) for one, bounds in zip(self._running, pairwise(_row_bounds(self._running)), strict=True)
        }
        self._running = _fill_places(self._running, leaving)
        rows = [row for one in self._running for row in rows_of[one]]
        try:
            if not rows:
                self._batch = None
            elif self._batch is not None:
                self._batch.keep_rows(rows)
        finally:  # the requests have ended, even if the batch of the others is damaged
            for one in leaving:
                one.request.on_end(error)


class _RunningRequest:
    """Request in the running batch, and the number of its tokens so far."""

    def __init__(self, request: EngineRequest, device: torch.device) -> None:
        self.request = request
        self._ids = request.policy.ids(device)
        self._sampler = TokenSampler(request.sampling, request.generator)
        self._count = 0

    @property
    def is_greedy(self) -> bool:
        """True if the next token is the argmax of the logits."""
        return self.request.guidance is None and self.request.sampling.temperature == 0

    @property
    def may_end(self) -> bool:
        return self._count >= self.request.policy.min_new

    @property
    def allowed(self) -> Tensor:
        """Ids that may come next."""
        return self._ids if self.may_end else self._ids[: -len(self.request.policy.ends)]

    def sample(self, log_probs: Tensor) -> int:
        """Samples from the log-probabilities [rows, vocabulary] of the request's rows."""
        guidance = self.request.guidance
        row = log_probs[0] if guidance is None else guide_log_probs(log_probs[0], log_probs[1], guidance)
        return int(self.allowed[self._sampler(row[self.allowed])])

    def accept(self, token: int) -> bool:
        """Passes a token on to the caller; returns whether more tokens follow."""
        if token in self.request.policy.ends:
            return False
        self._count += 1
        self.request.on_token(token)
        return self._count < self.request.policy.max_new


def _fill_places(running: Sequence[_RunningRequest], leaving: Sequence[_RunningRequest]) -> list[_RunningRequest]:
    """Requests that stay. If all have as many rows, the last ones fill the free places, so that few rows are moved."""
    staying = [one for one in running if one not in leaving]
    if len({one.request.rows for one in running}) > 1:
        return staying
    last = [one for one in running[len(staying) :] if one not in leaving]
    return [last.pop() if one in leaving else one for one in running[: len(staying)]]


def _row_bounds(running: Sequence[_RunningRequest]) -> list[int]:
    """First row of each request, and at the end the number of all rows."""
    return list(accumulate((one.request.rows for one in running), initial=0))
