"""Batcher of denoising steps: batches of one shape, cancellation and errors."""

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from serve.batching import Finished, StepBatcher, StepDone
from videolavit.models.sampling import OnStep


class _Sampler:
    """Counts to five, and records the batch of each step."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.begin = threading.Event()

    def __call__(self, requests: list[str], on_step: OnStep) -> Sequence[str]:
        self.begin.wait(10)
        rows = list(requests)
        for step in range(5):
            self.batches.append(list(rows))
            time.sleep(0.02)
            kept = on_step(step + 1, 5)
            rows = rows if kept is None else [rows[row] for row in kept]
        if "bad" in rows:
            raise ValueError("a bad request")
        return [row.upper() for row in rows]


async def _last(batcher: StepBatcher[str, str], request: str) -> tuple[str, list[int]]:
    steps: list[int] = []
    async for event in batcher.run(request):
        if isinstance(event, StepDone):
            steps.append(event.done)
        else:
            assert isinstance(event, Finished)
            return event.value, steps
    raise AssertionError("no end")


def test_requests_of_one_shape_share_a_batch() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.2)

    async def run() -> list[tuple[str, list[int]]]:
        return list(await asyncio.gather(*(_last(batcher, request) for request in ("ab", "cd", "xyz", "ef", "gh"))))

    results = asyncio.run(run())
    assert [value for value, _ in results] == ["AB", "CD", "XYZ", "EF", "GH"]
    assert all(steps == [1, 2, 3, 4, 5] for _, steps in results)
    assert [batch for number, batch in enumerate(sampler.batches) if number % 5 == 0] == [
        ["ab", "cd", "ef"],
        ["xyz"],
        ["gh"],
    ]


def test_a_cancelled_request_leaves_its_batch_at_the_next_step() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.2)

    async def run() -> tuple[str, list[int]]:
        left = asyncio.create_task(_last(batcher, "ab"))
        stays = asyncio.create_task(_last(batcher, "cd"))
        while not sampler.batches:
            await asyncio.sleep(0.005)
        left.cancel()
        return await stays

    assert asyncio.run(run()) == ("CD", [1, 2, 3, 4, 5])
    assert sampler.batches[0] == ["ab", "cd"]
    assert sampler.batches[-1] == ["cd"]


def test_a_cancelled_batch_stops_and_errors_reach_all_of_a_batch() -> None:
    sampler = _Sampler()
    sampler.begin.set()
    batcher = StepBatcher[str, str](sampler, len, limit=3, wait=0.05)

    async def run() -> None:
        alone = asyncio.create_task(_last(batcher, "a"))
        while not sampler.batches:
            await asyncio.sleep(0.005)
        alone.cancel()
        for other in ("bad", "ok!"):
            with pytest.raises(ValueError, match="a bad request"):
                await asyncio.gather(_last(batcher, "bad"), _last(batcher, other))
        assert (await _last(batcher, "x"))[0] == "X"

    asyncio.run(run())
    assert len([batch for batch in sampler.batches if batch == ["a"]]) < 5
