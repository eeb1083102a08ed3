"""Samples of a training that cannot be used: a few are left out, many of them end the run."""

from collections import deque

SKIPPED = "rejects.jsonl"
"""File of a run that names them."""

REJECT_SAMPLES = 1024
"""Samples over which their share is measured; at least those of a step."""


class TooManyRejects(RuntimeError):
    """Too many samples could not be used, and the run saved its last step."""


class RejectWindow:
    """Rejects of the last steps, over all ranks.

    Args:
        batch: Samples of a step.
        limit: Largest share of samples that may be rejected.
    """

    def __init__(self, batch: int, limit: float) -> None:
        self._batch, self._limit = batch, limit
        steps = -(-REJECT_SAMPLES // batch)
        self._rejected: deque[int] = deque(maxlen=steps)

    @property
    def last(self) -> int:
        """Rejects of the last step."""
        return self._rejected[-1]

    def add(self, rejected: int) -> None:
        """Adds the rejects of a step."""
        self._rejected.append(rejected)

    def ending(self, step: int) -> TooManyRejects | None:
        """Reason to end after a step; None while the share is within its limit."""
        samples, rejected = len(self._rejected) * self._batch, sum(self._rejected)
        if rejected <= self._limit * max(samples, REJECT_SAMPLES):
            return None
        return TooManyRejects(
            f"{rejected} of the last {samples} samples could not be used, as {SKIPPED} says; step {step} is saved. "
            "Where the storage failed, the same call goes on; max_rejects allows more of them"
        )
