"""Peak memory of a worker over a long 1080p file."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import psutil

from videolavit.files import write_beside
from videolavit.records.rows import plan_rows_from
from videolavit.records.samples import SampleSettings
from videolavit.records.storage import StorageSettings
from videolavit.sandbox.call import Arguments
from videolavit.synth import SynthSettings

from .reference import peak_megabytes, stream_peak, unit_peak
from .shared import (
    TIME_LIMIT,
    console,
    fresh_folder,
    in_own_process,
    local_ray,
    planned,
    process_tree,
    render_once,
    result_table,
    through_ray,
    verdict,
)

MEMORY_LIMIT = 400.0
"""Largest memory of a worker, in units of 10^6 bytes."""


def measure_memory(output: Path, seconds: int) -> dict[str, Any]:
    """Peak memory for a long 1080p file: streamed, and as the pipeline's worker does it, without and with Ray.

    `sum` adds the peaks of a worker's two processes, and so counts the library code that they share twice;
    `proportional` is the largest sum seen, twice a second, that counts it once.
    """
    video = long_video(output, seconds)
    plan = planned([video], SampleSettings(), StorageSettings())

    def alone(function: Callable[[*Arguments], dict[str, float]], *args: *Arguments) -> dict[str, float]:
        with _watched(function.__name__) as seen:
            peaks = in_own_process(function, *args, limit=4 * TIME_LIMIT)
        return peaks | {"proportional": seen["proportional"]}

    def under_ray(folder: str) -> dict[str, float]:
        with local_ray(), _watched("kinds:read_clips") as seen:
            for record in through_ray(plan, folder, SampleSettings(), workers=1):
                if record["rejects"]:
                    raise RuntimeError("a segment was rejected")
        return seen

    kinds: dict[str, Callable[[str], dict[str, float]]] = {
        "plain process": lambda folder: alone(stream_peak, str(video)),
        "worker without Ray": lambda folder: alone(unit_peak, plan_rows_from(plan), folder),
        "worker under Ray": under_ray,
    }
    result = {}
    for kind, run in kinds.items():
        console.print(f"memory: {kind}", style="dim")
        with fresh_folder(output, "memory") as folder:
            result[kind] = {"parent": 0.0, "child": 0.0} | run(folder)
    _show_memory(result, f"Peak memory, {seconds} s of 1080p in {plan.num_rows} segments, MB (10^6 bytes)")
    return {"video_seconds": seconds, "segments": plan.num_rows, "megabytes": result}


def long_video(output: Path, seconds: int) -> Path:
    """1080p file of a length: ten rendered seconds, whose packets are repeated. The file is kept for the next run."""
    part, video = output / "1080p-10s.mp4", output / f"1080p-{seconds}s.mp4"
    if not video.exists():
        console.print(f"memory: rendering {video.name}", style="dim")
        render_once(part, SynthSettings(width=1920, height=1080, seconds=10.0, speed=0.06), 0)
        with write_beside(video) as (unfinished,):
            _repeat_packets(part, unfinished, seconds // 10)
    return video


def _repeat_packets(part: Path, video: Path, times: int) -> None:
    with av.open(str(part)) as source, av.open(str(video), "w", format="mp4") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        length = stream.duration or 0
        for index in range(times):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.size == 0 or packet.pts is None or packet.dts is None:
                    continue
                packet.pts += index * length
                packet.dts += index * length
                packet.stream = copy
                target.mux(packet)


@contextmanager
def _watched(target: str) -> Iterator[dict[str, float]]:
    """Samples the process below this one that runs `target`, and the worker that it belongs to or that it owns."""
    seen = {"parent": 0.0, "child": 0.0, "proportional": 0.0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for process in process_tree():
                with suppress(psutil.Error, OSError, ValueError):  # the process may have ended
                    if target in " ".join(process.cmdline()):
                        _look(process, seen)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _look(process: psutil.Process, seen: dict[str, float]) -> None:
    owner = process.parent()
    worker = [process, *process.children()]
    if owner is not None and owner.pid != os.getpid():
        worker.append(owner)
        seen["parent"] = max(seen["parent"], peak_megabytes(owner.pid))
        seen["child"] = max(seen["child"], peak_megabytes(process.pid))
    total = sum(member.memory_full_info().pss for member in worker) / 1e6
    seen["proportional"] = max(seen["proportional"], total)


def _show_memory(result: dict[str, dict[str, float]], title: str) -> None:
    table = result_table(title, "", "process", "decoding child", "sum of peaks", "proportional")
    sums = {kind: peaks["parent"] + peaks["child"] for kind, peaks in result.items()}
    for kind, peaks in result.items():
        values = (peaks["parent"], peaks["child"], sums[kind], peaks["proportional"])
        table.add_row(kind, *(f"{value:.0f}" for value in values))
    console.print(table)
    verdict("largest sum of peaks", max(sums.values()), MEMORY_LIMIT, at_least=False)
