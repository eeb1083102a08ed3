"""State of a process that a call of the library must leave as it found it."""

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

from ray.data import DataContext

_LOGGERS = ("", "ray", "ray.data", "ray.serve", "ray.train")


def process_state() -> dict[str, Any]:
    """Environment, working directory, levels of loggers, warning filters, signal handlers and Ray Data's settings."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "levels": {name: logging.getLogger(name).level for name in _LOGGERS},
        "filters": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        "data": {name: repr(value) for name, value in vars(DataContext.get_current()).items()},
    }


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Raises AssertionError if the body changes the state of the process."""
    before = process_state()
    yield
    after = process_state()
    changes = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changes, changes
