"""CPU seconds of a corpus: the reference procedure against ours."""

import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from videolavit.media import probe

from .reference import SIDES, ClipResult, clips, measure
from .shared import TIME_LIMIT, console, in_own_process, result_table, verdict

CPU_GOAL = 6.0
"""Times less than the reference."""


def measure_cpu(videos: Sequence[Path], repeat: int) -> dict[str, Any]:
    """CPU seconds of a corpus by the reference, by its lean version, and by us; after checking that they agree.

    Every video, side and repetition has a fresh process. Sides take turns video by video, so that a change of the
    machine's speed meets all of them. A file's number is the median over the repetitions.
    """
    files = []
    for video in videos:
        console.print(f"cpu: {video.name}", style="dim")
        row = _agreement(video)
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(repeat):
            for side in list(SIDES)[:: 1 if turn % 2 == 0 else -1]:
                runs[side].append(_cpu_of(side, video))
        work = {side: median(run["work"] for run in runs[side]) for side in SIDES}
        files.append(row | {"cpu_seconds": work, "ratio": _ratios(work), "runs": runs})
    corpus = {side: sum(file["cpu_seconds"][side] for file in files) for side in SIDES}
    started = {side: median(run["start"] for file in files for run in file["runs"][side]) for side in SIDES}
    result = {
        "files": files,
        "corpus": {"cpu_seconds": corpus, "ratio": _ratios(corpus), "start_of_a_process": started},
    }
    _show_cpu(result)
    return result


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {side: seconds[side] / seconds["ours"] for side in seconds if side != "ours"}


def _cpu_of(side: str, video: Path) -> dict[str, float]:
    """CPU seconds of a fresh process: to start it, to do the work, and as the parent sees all of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, work = in_own_process(measure, side, str(video), limit=TIME_LIMIT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"start": start, "work": work, "process": total}


def _agreement(video: Path) -> dict[str, Any]:
    """Largest differences of features and of keyframe levels between the clips of the sides."""
    made: dict[str, list[ClipResult]] = {}
    for side in SIDES:
        made[side] = in_own_process(clips, side, str(video), limit=TIME_LIMIT)
    ours = {(clip.start_frame, clip.num_frames): clip for clip in made["ours"]}
    both = {
        side: [(clip, ours[key]) for clip in made[side] if (key := (clip.start_frame, clip.num_frames)) in ours]
        for side in SIDES
    }
    info = probe(video)
    return {
        "video": video.name,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "seconds": info.seconds,
        "clips": {side: len(clips) for side, clips in made.items()},
        "clips_of_both": len(both["reference"]),
        "features_differ_by": {side: _furthest(pairs, "features") for side, pairs in both.items()},
        "keyframes_differ_by": {side: _furthest(pairs, "keyframe") for side, pairs in both.items()},
    }


def _furthest(pairs: Iterable[tuple[ClipResult, ClipResult]], what: str) -> float | None:
    gaps = [np.abs(np.subtract(getattr(a, what), getattr(b, what), dtype=np.float64)).max() for a, b in pairs]
    return float(max(gaps)) if gaps else None


def _show_cpu(result: dict[str, Any]) -> None:
    columns = ("video", "picture", "codec", "s", "clips", "agree", "max |Δ|", *SIDES, "ratio", "lean ratio")
    table = result_table("CPU seconds (user + system, children included), median", *columns)
    for file in result["files"]:
        gap = file["features_differ_by"]["reference"]
        table.add_row(
            file["video"],
            f"{file['width']}x{file['height']}",
            file["codec"],
            f"{file['seconds'] or 0:.1f}",
            str(file["clips"]["ours"]),
            str(file["clips_of_both"]),
            "-" if gap is None else f"{gap:.1e}",
            *_seconds_and_ratios(file),
        )
    table.add_section()
    table.add_row("corpus", *[""] * 6, *_seconds_and_ratios(result["corpus"]))
    started = result["corpus"]["start_of_a_process"]
    table.add_row("start of a process", *[""] * 6, *(f"{started[side]:.3f}" for side in SIDES))
    console.print(table)
    verdict("corpus ratio", result["corpus"]["ratio"]["reference"], CPU_GOAL, at_least=True)


def _seconds_and_ratios(row: dict[str, Any]) -> list[str]:
    seconds = [f"{row['cpu_seconds'][side]:.3f}" for side in SIDES]
    return seconds + [f"{ratio:.2f}" for ratio in row["ratio"].values()]
