"""Requests of equal shape, sampled together: with progress of each, and each can be cancelled at every step."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from videolavit.models.sampling import OnStep

BatchItem = TypeVar("BatchItem")
Result = TypeVar("Result")


class AllCancelled(Exception):
    """Nobody waits for a batch any more."""


@dataclass(frozen=True)
class StepDone:
    """Steps done of a request.

    Args:
        done: So far.
        total: In all.
        batch: Requests that are worked on together.
        seconds: Since the last step.
    """

    done: int
    total: int
    batch: int
    seconds: float


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """The end of a request.

    Args:
        seconds: Since the last step: of the decoding of pixels.
    """

    value: Result
    seconds: float


@dataclass(eq=False)
class _Waiting(Generic[BatchItem]):
    """A request; its events go to the loop that it came from."""

    order: BatchItem
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def tell(self, event: object) -> None:
        """Hands on a step, the end, or an exception."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class StepBatcher(Generic[BatchItem, Result]):
    """A thread that works on batches, one after the other, so that a network is used by one at a time.

    A request that is cancelled leaves its batch at the next step, with its memory; the others go on.

    Args:
        work: Called with orders of equal shape and `on_step`; returns the result of each that was not left out.
        shape: Orders with equal shapes are worked on together.
        limit: Most orders of a batch.
        wait: Seconds to wait for a batch to fill.
    """

    def __init__(
        self,
        work: Callable[[list[BatchItem], OnStep], Sequence[Result]],
        shape: Callable[[BatchItem], Hashable],
        limit: int,
        wait: float,
    ) -> None:
        self._work, self._shape, self._limit, self._wait = work, shape, limit, wait
        self._waiting: deque[_Waiting[BatchItem]] = deque()
        self._news = threading.Condition()
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    async def run(self, order: BatchItem) -> AsyncGenerator[StepDone | Finished[Result]]:
        """Yields the steps of a request, and at last its result. Raises what the work raised."""
        waiting = _Waiting(order, asyncio.get_running_loop())
        with self._news:
            self._waiting.append(waiting)
            self._news.notify()
        try:
            while True:
                event = await waiting.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            waiting.cancelled = True

    def _run(self) -> None:
        while True:
            batch: list[_Waiting[BatchItem]] = []
            try:
                batch = self._next()
                self._sample(batch)
            except AllCancelled:
                continue
            except Exception as error:  # whatever the network raises belongs to those who wait
                for one in batch:
                    one.tell(error)

    def _next(self) -> list[_Waiting[BatchItem]]:
        """The oldest request and those of its shape, after a moment for more to come."""
        with self._news:
            self._news.wait_for(lambda: self._waiting)
            self._news.wait_for(lambda: len(self._waiting) >= self._limit, timeout=self._wait)
            alive = [one for one in self._waiting if not one.cancelled]
            shape = self._shape(alive[0].order) if alive else None
            batch = [one for one in alive if self._shape(one.order) == shape][: self._limit]
            self._waiting = deque(one for one in alive if one not in batch)
            return batch

    def _sample(self, batch: list[_Waiting[BatchItem]]) -> None:
        last = time.monotonic()

        def on_step(done: int, total: int) -> Sequence[int] | None:
            nonlocal last
            kept = [row for row, one in enumerate(batch) if not one.cancelled]
            if not kept:
                raise AllCancelled
            left_out = len(kept) < len(batch)
            batch[:] = [batch[row] for row in kept]
            now = time.monotonic()
            for one in batch:
                one.tell(StepDone(done, total, len(batch), now - last))
            last = now
            return kept if left_out else None

        if batch:
            results = self._work([one.order for one in batch], on_step)
            seconds = time.monotonic() - last
            for one, result in zip(batch, results, strict=True):
                one.tell(Finished(result, seconds))
