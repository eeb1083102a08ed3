"""Reports of the workers of a training, kept beside its driver, on whatever storage the run is."""

from videolavit.progress import Progress


class RunReports:
    """Actor that keeps what workers report until the driver takes it, and the driver's wish to stop."""

    def __init__(self) -> None:
        self._progress: list[Progress] = []
        self._error: tuple[str, str] | None = None
        self._stops = False

    def add(self, progress: Progress) -> None:
        """Keeps a report."""
        self._progress.append(progress)

    def take(self) -> list[Progress]:
        """Returns the reports since the last call."""
        taken, self._progress = self._progress, []
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

    def stops(self) -> bool:
        """True if the workers are to save and stop."""
        return self._stops
