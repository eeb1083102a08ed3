"""Batches of requests of equal shape, each of which reports its progress and can be cancelled at every step."""

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
    """All requests of a batch have been cancelled."""


@dataclass(frozen=True)
class StepDone:
    """Progress of a request after a step.

    Args:
        done: Number of steps done.
        total: Number of steps in all.
        batch: Number of requests in the batch.
        seconds: Duration of the step, in seconds.
    """

    done: int
    total: int
    batch: int
    seconds: float


@dataclass(frozen=True)
class Finished(Generic[Result]):
    """Result of a request.

    Args:
        value: Result.
        seconds: Time since the last step, in which pixels are decoded, in seconds.
    """

    value: Result
    seconds: float


@dataclass(eq=False)
class _Pending(Generic[BatchItem]):
    """Request whose events go to the event loop that it came from."""

    request: BatchItem
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def send(self, event: object) -> None:
        """Sends a step, the result or an exception to the loop."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class StepBatcher(Generic[BatchItem, Result]):
    """Thread that runs batches of requests one after the other, so that a network runs one batch at a time.

    A cancelled request leaves its batch at the next step, and its memory is freed; the others go on.

    Args:
        work: Called with requests of equal shape and `on_step`; returns the results of those that were not cancelled.
        shape: Shape of a request; only requests of equal shapes share a batch.
        limit: Largest batch size.
        wait: Time to wait for a batch to fill, in seconds.
    """

    def __init__(
        self,
        work: Callable[[list[BatchItem], OnStep], Sequence[Result]],
        shape: Callable[[BatchItem], Hashable],
        limit: int,
        wait: float,
    ) -> None:
        self._work, self._shape, self._limit, self._wait = work, shape, limit, wait
        self._waiting: deque[_Pending[BatchItem]] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    async def run(self, request: BatchItem) -> AsyncGenerator[StepDone | Finished[Result]]:
        """Yields the steps of a request, and then its result. Raises the exceptions of `work`."""
        pending = _Pending(request, asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(pending)
            self._changed.notify()
        try:
            while True:
                event = await pending.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            pending.cancelled = True

    def _run(self) -> None:
        while True:
            batch: list[_Pending[BatchItem]] = []
            try:
                batch = self._next()
                self._work_on(batch)
            except AllCancelled:
                continue
            except Exception as error:  # any exception of the network is raised in all requests of the batch
                for pending in batch:
                    pending.send(error)

    def _next(self) -> list[_Pending[BatchItem]]:
        """Waits for requests; returns the oldest and others of its shape, after a moment in which more may come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            self._changed.wait_for(lambda: len(self._waiting) >= self._limit, timeout=self._wait)
            alive = [pending for pending in self._waiting if not pending.cancelled]
            shape = self._shape(alive[0].request) if alive else None
            batch = [pending for pending in alive if self._shape(pending.request) == shape][: self._limit]
            self._waiting = deque(pending for pending in alive if pending not in batch)
            return batch

    def _work_on(self, batch: list[_Pending[BatchItem]]) -> None:
        last = time.monotonic()

        def on_step(done: int, total: int) -> Sequence[int] | None:
            nonlocal last
            kept = [row for row, pending in enumerate(batch) if not pending.cancelled]
            if not kept:
                raise AllCancelled
            some_left = len(kept) < len(batch)
            batch[:] = [batch[row] for row in kept]
            now = time.monotonic()
            for pending in batch:
                pending.send(StepDone(done, total, len(batch), now - last))
            last = now
            return kept if some_left else None

        if batch:
            results = self._work([pending.request for pending in batch], on_step)
            seconds = time.monotonic() - last
            for pending, result in zip(batch, results, strict=True):
                pending.send(Finished(result, seconds))
