"""Stages of a long chain of work: calls in processes of their own, two at a time, each done once.

A stage that was interrupted is called again, and continues where its function can.
"""

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from videolavit.files import write_beside
from videolavit.progress import OnProgress, Progress, ignore_progress

from .progress_file import read_progress, write_progress

STAGES = "stages.json"
AT_ONCE = 2
"""Stages that run side by side."""

STAGE_POLL, NOTE_EVERY = 0.5, 10.0
"""Seconds between two looks at running stages, and between two notes of their time: what is killed counts too."""

STOP_SECONDS = 10.0
"""Seconds that a stopped stage has to end by itself."""

_TRACEBACK = "Traceback (most recent call last):"

STAGE_ENVIRONMENT = {
    # stages share the cores, and networks this small gain nothing from more than one
    "OMP_NUM_THREADS": "1",
    # glibc hands what a step frees back to the kernel and asks for it again at the next, page by page
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Environment variables of every stage. They count when a process starts."""


class StageFailed(RuntimeError):
    """A stage ended with an error. Another call tries it again."""


@dataclass(frozen=True)
class Stage:
    """A call in a process of its own.

    Args:
        name: Name of the stage, and of its log.
        work: Module-level function, or a `functools.partial` of one, that takes `on_progress`. It is pickled.
        after: Names of the stages that come first.
    """

    name: str
    work: Callable[..., object]
    after: Sequence[str] = ()


class Stages:
    """Stages that are done, and when each of them ran, also in vain; kept in a file.

    Args:
        folder: Folder of the file and of `logs/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        file = folder / STAGES
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.done: list[str] = found.get("done", [])
        self._times: dict[str, list[tuple[float, float]]] = {
            name: [(start, end) for start, end in spans] for name, spans in found.get("times", {}).items()
        }

    def run(self, stages: Sequence[Stage], on_progress: OnProgress = ignore_progress) -> None:
        """Runs what is not done, in the given order where `after` leaves a choice.

        Args:
            on_progress: Receives the progress of each stage, under the stage's name.

        Raises:
            StageFailed: a stage failed; those beside it were stopped.
        """
        waiting = [stage for stage in stages if stage.name not in self.done]
        for stage in stages:
            if stage not in waiting:
                on_progress(Progress(stage.name, message="done before"))
        running: list[_RunningStage] = []
        noted = time.monotonic()
        try:
            while waiting or running:
                ready = [stage for stage in waiting if set(stage.after) <= set(self.done)]
                for stage in ready[: AT_ONCE - len(running)]:
                    on_progress(Progress(stage.name, message="starts"))
                    running.append(_RunningStage(stage, self._folder / "logs"))
                    waiting.remove(stage)
                if not running:
                    raise AssertionError(f"no stage comes before {', '.join(stage.name for stage in waiting)}")
                time.sleep(STAGE_POLL)
                ended = [one for one in running if one.has_ended()]
                for one in running:
                    for report in next(one.progress):
                        on_progress(report)
                if ended or time.monotonic() - noted > NOTE_EVERY:
                    noted = time.monotonic()
                    self._note(running, [one.name for one in ended if not one.status])
                for one in ended:
                    running.remove(one)
                    one.check()
                    on_progress(Progress(one.name, message=f"{self.minutes[one.name]:.1f} min"))
        finally:
            for one in running:
                one.stop()
            self._note(running, [])

    @property
    def minutes(self) -> dict[str, float]:
        """Time of each stage, in minutes."""
        return {name: sum(end - start for start, end in spans) / 60 for name, spans in self._times.items()}

    @property
    def total_minutes(self) -> float:
        """Minutes in which there was a stage at work, or two."""
        seconds = until = 0.0
        for start, end in sorted(span for spans in self._times.values() for span in spans):
            seconds += max(end - max(start, until), 0.0)
            until = max(until, end)
        return seconds / 60

    def _note(self, running: "Sequence[_RunningStage]", done: Sequence[str]) -> None:
        """Writes the time of running stages so far, and the stages that are done."""
        now = time.time()
        for one in running:
            others = [span for span in self._times.get(one.name, []) if span[0] != one.started]
            self._times[one.name] = [*others, (one.started, now)]
        self.done += done
        with write_beside(self._folder / STAGES) as (unfinished,):
            unfinished.write_text(json.dumps({"done": self.done, "times": self._times}, indent=2))


class _RunningStage:
    """Process of a stage. It ends when this process does."""

    def __init__(self, stage: Stage, logs: Path) -> None:
        self.name, self.started = stage.name, time.time()
        logs.mkdir(parents=True, exist_ok=True)
        self._log, self._file = logs / f"{stage.name}.log", logs / f"{stage.name}.progress.jsonl"
        self._file.unlink(missing_ok=True)
        self.progress = self._read()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipelines.stages"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=os.environ | STAGE_ENVIRONMENT | {"PYTHONPATH": path},
            )
        with contextlib.suppress(BrokenPipeError):  # a process that has ended says why in its log
            self._process.stdin.write(pickle.dumps((stage.work, self._file)))  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def _read(self) -> Iterator[list[Progress]]:
        """Yields, whenever asked, the new progress of the stage under its own name."""
        for reports in read_progress(self._file):
            yield [Progress(self.name, one.done, one.total, one.message or one.stage) for one in reports]

    @property
    def status(self) -> int | None:
        """Exit status; None while the stage runs."""
        return self._process.returncode

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises StageFailed if the stage ended with an error."""
        self._file.unlink(missing_ok=True)
        if self.status:
            reason = _reason(self._log.read_text(errors="replace").splitlines())
            raise StageFailed(f"the stage {self.name} failed: {reason} (log: {self._log})")

    def stop(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _reason(log: Sequence[str]) -> str:
    """The exception at the end of a log, in a line; the log's last line where there is none."""
    lines = list(log) or ["it said nothing"]
    if _TRACEBACK not in lines:
        return lines[-1]
    raised = dropwhile(lambda line: line.startswith(" "), lines[len(lines) - lines[::-1].index(_TRACEBACK) :])
    return " ".join(line.strip() for line in raised if "errors.pydantic.dev" not in line) or lines[-1]


def _serve() -> None:
    """Runs the process of a stage."""
    work, progress = pickle.load(sys.stdin.buffer)  # noqa: S301, from the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    log = logging.getLogger(__name__)

    def report(reported: Progress) -> None:
        write_progress(progress, reported)
        if reported.message:
            log.info("%s: %s", reported.stage, reported.message)

    work(on_progress=report)


def _end_with_parent() -> None:
    os.read(0, 1)  # unbuffered: Python cannot end while another thread holds the lock of a buffer
    os._exit(1)


if __name__ == "__main__":
    _serve()
