"""Progress of another process, through a file: a line of JSON for each report."""

import json
from collections.abc import Iterator
from pathlib import Path

from videolavit.progress import Progress


def write_progress(file: Path, progress: Progress) -> None:
    """Appends a report."""
    with file.open("a") as lines:
        lines.write(json.dumps([progress.stage, progress.done, progress.total, progress.message]) + "\n")


def read_progress(file: Path) -> Iterator[list[Progress]]:
    """Yields, whenever asked, the reports that were written since."""
    position = 0
    while True:
        reports = []
        if file.exists():
            with file.open() as lines:
                lines.seek(position)
                for line in iter(lines.readline, ""):
                    if not line.endswith("\n"):  # still being written
                        break
                    reports.append(Progress(*json.loads(line)))
                    position = lines.tell()
        yield reports
