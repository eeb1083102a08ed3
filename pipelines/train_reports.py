"""Reports of the workers of a training, kept beside its driver, on whatever storage the run is."""

from collections.abc import Collection
from dataclasses import dataclass

from videolavit.progress import Progress


@dataclass(frozen=True)
class WorkerSign:
    """Sign of life of a worker.

    Args:
        rank, world: Rank of the worker, and number of workers.
        node: Id of its node.
        address: Address of its node.
    """

    rank: int
    world: int
    node: str
    address: str


class RunReports:
    """Actor that keeps what workers report until the driver takes it, and whether they are to stop."""

    def __init__(self) -> None:
        self._progress: list[Progress] = []
        self._signs: dict[int, WorkerSign] = {}
        self._error: tuple[str, str] | None = None
        self._stops = False
        self._draining: Collection[str] = ()

    def add(self, progress: Progress) -> None:
        """Keeps a report."""
        self._progress.append(progress)

    def take(self) -> tuple[list[Progress], list[WorkerSign]]:
        """Returns the reports and the last sign of life of each worker since the last call."""
        taken = self._progress, list(self._signs.values())
        self._progress, self._signs = [], {}
        return taken

    def fail(self, kind: str, message: str) -> None:
        """Keeps an error that starting again does not cure, or an end of the run that has saved its last step."""
        self._error = kind, message

    def error(self) -> tuple[str, str] | None:
        """Type and message of the last such error."""
        return self._error

    def stop(self) -> None:
        """Asks the workers to save and stop."""
        self._stops = True

    def drain(self, nodes: Collection[str]) -> None:
        """Notes the ids of the nodes that Ray takes away, as it does with spot nodes."""
        self._draining = nodes

    def stops(self, sign: WorkerSign) -> bool:
        """Takes a sign of life, and returns True if the worker is to save and stop."""
        self._signs[sign.rank] = sign
        return self._stops or sign.node in self._draining
