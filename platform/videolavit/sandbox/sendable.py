"""Classes whose objects a child process may answer with."""

from typing import TypeVar

T = TypeVar("T")

CLASSES: dict[str, type] = {}


def sendable(kind: type[T]) -> type[T]:
    """Marks a dataclass whose objects a child process may answer with. A parent makes them of fields that fit their
    declared types, and checks no more."""
    CLASSES[kind.__qualname__] = kind
    return kind
