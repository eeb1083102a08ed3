"""Progress of long calls, as every function of the library reports it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State of one stage of a call.

    Args:
        stage: Name of the stage, such as `decompose` or `keyframes`.
        done: Units finished so far.
        total: Units in all; 0 where it is not known.
        message: Line for people: figures so far, or what went wrong without ending the call. Plain text.
    """

    stage: str
    done: float = 0
    total: float = 0
    message: str = ""


OnProgress = Callable[[Progress], None]
"""Receives progress, in the thread of the call. It may raise to stop the call."""


def ignore_progress(progress: Progress) -> None:
    """Progress callback that does nothing."""
