"""Child processes that several threads share."""

from collections.abc import Callable
from typing import Generic

from .call import Arguments, IsolatedFunction, Result


class ChildPool(Generic[*Arguments, Result]):
    """Children that call one function: as many as there were calls at once.

    Args:
        make: Makes the function of one more child.
    """

    def __init__(self, make: Callable[[], IsolatedFunction[*Arguments, Result]]) -> None:
        self._make = make
        self._idle: list[IsolatedFunction[*Arguments, Result]] = []

    def __call__(self, *args: *Arguments, time_limit: float) -> Result:
        """Calls the function in an idle child. Raises what `IsolatedFunction` does."""
        child = self.take()
        try:
            return child(*args, time_limit=time_limit)
        finally:
            self.give_back(child)

    def take(self) -> IsolatedFunction[*Arguments, Result]:
        """An idle child, or a new one, for one caller. It is given back when its call has ended, or else given up."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()

    def give_back(self, child: IsolatedFunction[*Arguments, Result]) -> None:
        """Lets others have a child."""
        self._idle.append(child)
