"""Measurements of the proof on held-out videos, and the page that shows them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from videolavit.evaluation.questions import DIRECTION_QUESTION
from videolavit.evaluation.shape import ShapeClassifier, train_shape_classifier
from videolavit.evaluation.synthetic import (
    EvaluatedVideo,
    ask_directions,
    evaluate_generation,
    reconstruct_keyframes,
    reconstruct_motion,
)
from videolavit.files import write_beside
from videolavit.generation.output import side_by_side
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, settings_of_model
from videolavit.media import Cell, contact_sheet, motion_features
from videolavit.media.quality import explained_variance, psnr
from videolavit.media.resize import resize_picture
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import Examples
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.pictures import decode_image
from videolavit.records.report import REPORT, render_page
from videolavit.records.shards import TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.token_report import sampled_statistics
from videolavit.synth import SynthSettings
from videolavit.training.metrics import CURVES, read_metrics
from videolavit.training.run import MODEL_FOLDER
from videolavit.training.sources import ClipSample, clip_sources

RESULTS, GENERATED_SHEET = "results.json", "generated.png"
CLEARLY = 0.05
"""Nats by which a motion token must be less surprising behind its own caption than behind another one."""

QUESTIONED, RECONSTRUCTED = 100, 100
SEEDS = {"first seed": 0, "second seed": 1_000_000}
"""Seeds of the first of the generated videos; each later one has the next."""

GENERATION = GenerateSettings(
    temperature=0.5,
    top_k=50,
    visual_guidance=4.0,
    motion_guidance=2.0,
    min_visual=1,
    keyframe_steps=25,
    keyframe_guidance=3.0,
    video_steps=12,
    max_guidance=1.0,
)
"""Settings of generation. Temperature and guidance were chosen by the colour of keyframes for held-out captions, after
a first look at two hundred of them on the second hundred; the first hundred are measured."""

EXAMPLES = Examples(
    video=(
        "a large red circle moves right fast",
        "a small blue star moves up slowly",
        "a large yellow triangle moves left at medium speed",
        "a small green square moves down fast",
    ),
    picture=("a large purple square moves up slowly", "a small orange circle moves left fast"),
    question=(DIRECTION_QUESTION, "What colour is it?", "What shape is it?"),
)
"""Prompts that the page of a service offers: such as the model was trained on."""

RUNS = (
    "keyframe-vae",
    "vision-transformer",
    "visual-tokenizer",
    "keyframe-detokenizer",
    "motion-tokenizer",
    "video-vae",
    "video-detokenizer",
    "language-model",
    "chat",
)


@dataclass(frozen=True)
class Criterion:
    """A measurement and its goal.

    Args:
        name: Quantity that was measured.
        value: Measured value.
        goal: Goal, for people.
        reached: True if the value reaches the goal.
    """

    name: str
    value: float
    goal: str
    reached: bool


@dataclass(frozen=True, kw_only=True)
class ProofSummary:
    """Result of `prove` and of `prove_backbone`.

    Args:
        criteria: Measurements on held-out videos, each with its goal.
        minutes: Minutes of each stage.
        total_minutes: Minutes in which there was a stage at work.
        model: Folder of the model.
        report: Page with the measurements and pictures.
    """

    criteria: Sequence[Criterion]
    minutes: Mapping[str, float]
    total_minutes: float
    model: Path
    report: Path

    @property
    def is_reached(self) -> bool:
        """True if every goal is reached."""
        return all(one.reached for one in self.criteria)


def measure(output: Path, prompts: int, videos: SynthSettings, on_progress: OnProgress = ignore_progress) -> None:
    """Measures the trained model on held-out videos, and writes the results.

    Args:
        output: Folder of the proof.
        prompts: Held-out captions from which videos are generated.
        videos: Content of the held-out videos, whose shapes a classifier of forms is trained on.
        on_progress: Receives the progress of generation and questions.
    """
    runtime = Runtime(ModelFolder(output / MODEL_FOLDER))
    settings, sizes = settings_of_model(runtime.model, GenerateSettings), runtime.model.sizes
    on_progress(Progress("generate", message="training a classifier of forms"))
    classifier = train_shape_classifier(replace(videos, split="all"), (sizes.video_height, sizes.video_width))
    criteria = [
        *_of_generation(output, runtime, settings, prompts, classifier, on_progress),
        *_of_reconstruction(output, runtime, settings),
        *_of_language(output),
        *_of_understanding(output, runtime, on_progress),
    ]
    write_results(output, {"criteria": [asdict(one) for one in criteria]})


def read_criteria(output: Path) -> list[Criterion]:
    """Reads the results of `measure`."""
    return [Criterion(**one) for one in json.loads((output / RESULTS).read_text())["criteria"]]


def write_results(output: Path, results: dict[str, Any]) -> None:
    """Writes results in one step."""
    with write_beside(output / RESULTS) as (unfinished,):
        unfinished.write_text(json.dumps(results, indent=2) + "\n")


def criterion(name: str, value: float, least: float) -> Criterion:
    return Criterion(name, float(value), f"at least {least:g}", bool(value >= least))


def _of_generation(
    output: Path,
    runtime: Runtime,
    settings: GenerateSettings,
    prompts: int,
    classifier: ShapeClassifier,
    on_progress: OnProgress,
) -> list[Criterion]:
    rows = read_manifest(output / "held-out")[:prompts]
    criteria = [criterion("accuracy of the classifier of forms", classifier.accuracy, 0.98)]
    for name, seed in SEEDS.items():
        evaluate = partial(evaluate_generation, runtime, rows, classifier, settings, seed=seed, on_progress=on_progress)
        videos, long = evaluate(), evaluate(clips=2)
        if seed == 0:
            save_generated(output / GENERATED_SHEET, videos)
        shares: dict[tuple[str, float], list[float]] = {
            ("direction of generated motion", 0.95): [one.direction_is_right for one in videos],
            ("colour of the generated object", 0.95): [one.colour_is_right for one in videos],
            ("form of the generated object", 0.85): [one.shape_is_right for one in videos],
            ("generated motion as its motion tokens say", 0.8): [one.agreement for one in videos],
            ("colour and form stay over two clips", 0.9): [one.colour_and_shape_stay for one in long],
        }
        criteria += [criterion(f"{what}, {name}", fmean(of), goal) for (what, goal), of in shares.items()]
    return criteria


def save_generated(file: Path, videos: Sequence[EvaluatedVideo]) -> None:
    cells = [
        Cell(np.concatenate([one.frames[0], one.frames[len(one.frames) // 2], one.frames[-1]], axis=1), _caption(one))
        for one in videos[:24]
    ]
    save_sheet(file, cells)


def _caption(one: EvaluatedVideo) -> str:
    return f"{one.row['text']}: seen {one.colours[0]} {one.shapes[0]}, {one.direction or 'still'}"


def _of_reconstruction(output: Path, runtime: Runtime, settings: GenerateSettings) -> list[Criterion]:
    clips = _held_out_clips(output)[:RECONSTRUCTED]
    config = runtime.model.config("motion_tokenizer")
    size = (config.grid_height, config.grid_width)
    motion = np.stack([motion_features(one.motion, one.width, one.height, size) for one in clips])
    explained = explained_variance(motion, reconstruct_motion(runtime, motion))
    sizes = runtime.model.sizes
    originals = [
        resize_picture(decode_image(one.keyframe), sizes.keyframe_height, sizes.keyframe_width) for one in clips
    ]
    # guidance makes reconstructions clearer, and less alike
    reconstructed = reconstruct_keyframes(runtime, originals, replace(settings, keyframe_guidance=1.0))
    pairs = list(zip(originals, reconstructed, strict=True))
    save_sheet(output / "keyframes.png", [Cell(side_by_side(*pair), f"{psnr(*pair):.1f} dB") for pair in pairs[:24]])
    folder = Folder(str(output / "held-out-tokens"), StorageSettings())
    usage = sampled_statistics(folder, sorted(Ledger(folder, TOKEN_SHARDS).committed()))[0].usage
    codes = {kind: runtime.model.config(f"{kind}_tokenizer").num_codes for kind in ("visual", "motion")}
    return [
        criterion("explained variance of motion through tokens", explained, 0.7),
        criterion("PSNR of keyframes through tokens, dB", float(np.mean([psnr(*pair) for pair in pairs])), 20),
        *(criterion(f"perplexity of the {kind} codes", usage[kind].perplexity, codes[kind] / 4) for kind in codes),
    ]


def _of_language(output: Path) -> list[Criterion]:
    found = read_metrics(output / "language-model")
    falling = []
    for kind in ("text", "visual", "motion"):
        values = np.array([value for _, value in found[f"validation/{kind}"]])
        share = float(np.mean(np.diff(values) <= 0)) if len(values) > 1 else 0.0
        falling.append(criterion(f"share of validations in which the held-out loss of {kind} falls", share, 1.0))
    own, other = (found[f"samples/motion_{whose}_caption"][-1][1] for whose in ("own", "other"))
    return [*falling, criterion("nats a motion token gains from its own caption", other - own, CLEARLY)]


def _of_understanding(output: Path, runtime: Runtime, on_progress: OnProgress) -> list[Criterion]:
    rows = read_manifest(output / "held-out")[:QUESTIONED]
    on_progress(Progress("questions", total=len(rows), message="asking about held-out videos"))
    answers = ask_directions(runtime, [str(output / "held-out" / row["video"]) for row in rows])
    right = [answer == row["shapes"][0]["direction"] for answer, row in zip(answers, rows, strict=True)]
    return [criterion("answers to which direction it moves", float(np.mean(right)), 0.98)]


def read_manifest(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]


def _held_out_clips(output: Path) -> list[ClipSample]:
    (source,) = clip_sources([str(output / "held-out-clips")], StorageSettings())
    return [source.load(shard, row) for shard, size in enumerate(source.sizes) for row in range(size)]


def save_sheet(file: Path, cells: Sequence[Cell]) -> None:
    """Writes captioned pictures as one picture."""
    from PIL import Image

    Image.fromarray(contact_sheet(cells, columns=3, cell_width=420)).save(file)


def write_report(output: Path, criteria: Sequence[Criterion], minutes: Mapping[str, float]) -> Path:
    """Writes the page of the proof."""
    facts = [
        (f"{one.name} (goal {one.goal})", f"{'' if one.reached else 'missed: '}{one.value:.3g}") for one in criteria
    ]
    facts += [(f"minutes of {name}", f"{value:.1f}") for name, value in minutes.items()]
    pictures = [
        (
            (output / GENERATED_SHEET).read_bytes(),
            "First, middle and last frame of what was generated for held-out captions",
        ),
        ((output / "keyframes.png").read_bytes(), "Held-out keyframes, and their reconstructions from tokens"),
    ]
    pictures += [((output / name / CURVES).read_bytes(), name) for name in RUNS if (output / name / CURVES).exists()]
    page = render_page(
        title="Proof: trained from nothing, measured on what was held out", facts=facts, cells=[], pictures=pictures
    )
    (output / REPORT).write_text(page)
    return output / REPORT
