"""Cache of a function's last results, for objects that are sent between processes."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Recent(Generic[Arguments, Result]):
    """Cache like `functools.lru_cache`, for a method of one object. It can be pickled, and is empty after unpickling.

    Args:
        function: Function whose results are cached.
        size: Number of results that are kept.
    """

    def __init__(self, function: Callable[Arguments, Result], size: int) -> None:
        self._function, self._size = function, size
        self._kept: Any = lru_cache(maxsize=size)(function)

    def __call__(self, *arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        result: Result = self._kept(*arguments, **named)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._function, self._size)
