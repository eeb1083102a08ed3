"""The proof that it learns: everything trained from nothing on a synthetic corpus, and measured on what was held out.

Its stages are processes of their own. Pictures and then language, which needs both tokenizers, go side by side with
motion and videos: two cores are enough.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.files import InputError
from videolavit.records.report import REPORT
from videolavit.training.recipes import recipe_file
from videolavit.training.run import MODEL_FOLDER

from .backbone_proof import BackboneSizes, prove_backbone
from .decompose import DecomposeRequest
from .proof_corpus import Comparison, read_comparison
from .proof_results import RESULTS, ProofSummary, read_criteria, write_report
from .proof_stages import (
    HELD_OUT_CLIPS,
    TRAIN_CLIPS,
    ProofSizes,
    compare_model,
    corpus_stages,
    decompose_all,
    local_folder,
    measure_model,
    training_stages,
)
from .stages import Stage, Stages

__all__ = [
    "BackboneSizes",
    "MemorySummary",
    "ProofSizes",
    "ProofSummary",
    "memorise",
    "prove",
    "prove_backbone",
]

MEASURING = "measuring"
CAPTIONS_FILE = "captions.jsonl"


@dataclass(frozen=True, kw_only=True)
class MemorySummary:
    """Result of `memorise`.

    Args:
        comparison: Clips that were generated from the captions, compared with their own videos.
        minutes: Minutes of each stage.
        total_minutes: Minutes in which there was a stage at work.
        model: Folder of the model.
        report: Page with the comparison.
    """

    comparison: Comparison
    minutes: Mapping[str, float]
    total_minutes: float
    model: Path
    report: Path


def prove(
    output: str | Path, sizes: ProofSizes | None = None, on_progress: OnProgress = ignore_progress
) -> ProofSummary:
    """Trains everything from nothing on a synthetic corpus, and measures it on what was held out.

    Renders captioned videos, decomposes them, trains all parts of the preset `tiny`, tokenizes, trains the language
    model and tunes it on questions; then generates videos from combinations of colour, shape and direction that were
    not in the training set, and lets the decomposition say where they move. The same call continues where the last one
    stopped.

    Args:
        output: Local folder of the proof.
        on_progress: Receives the progress of each stage, under the stage's name.

    Raises:
        InputError: the folder cannot be used, or holds the results of something else.
        StageFailed: a stage failed; another call tries it again.
    """
    folder, sizes = _folder(output, is_proof=True), sizes or ProofSizes()
    corpus = corpus_stages(folder, sizes)
    stages = [*corpus, *training_stages(folder, sizes.recipe, sizes.max_steps, corpus[-1].name, with_chat=True)]
    done = _run(folder, stages, partial(measure_model, folder, sizes), on_progress)
    criteria, minutes = read_criteria(folder), done.minutes
    return ProofSummary(
        criteria=criteria,
        minutes=minutes,
        total_minutes=done.total_minutes,
        model=folder / MODEL_FOLDER,
        report=write_report(folder, criteria, {"all": done.total_minutes} | minutes),
    )


def memorise(
    output: str | Path,
    corpus: str | Path,
    recipe: str = "tiny",
    *,
    max_steps: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> MemorySummary:
    """Trains everything on a folder of captioned videos, as a check of overfitting: captions must bring back their
    own videos. The same call continues where the last one stopped.

    Args:
        output: Local folder of the check.
        corpus: Folder of videos with `captions.jsonl`, a line `{"video": ..., "caption": ...}` for each.
        recipe: Recipe of the trainings, in `config/training/`.
        max_steps: Largest number of steps of each training; None for the recipe's own.
        on_progress: Receives the progress of each stage, under the stage's name.

    Raises:
        InputError: a folder cannot be used, there are no captions, or the output holds the results of something else.
        UnknownRecipe: no recipe has that name.
        StageFailed: a stage failed; another call tries it again.
    """
    captions = Path(corpus) / CAPTIONS_FILE
    recipe_file(recipe, "visual-tokenizer")
    if not captions.is_file():
        raise InputError(
            f"{captions} is missing: a line for each video, as " + '{"video": "a.mp4", "caption": "a dog"}'
        )
    folder = _folder(output, is_proof=False)
    held_out = folder / HELD_OUT_CLIPS
    request = DecomposeRequest(inputs=[str(captions)], text_column="caption", output=f"{folder}/{TRAIN_CLIPS}")
    if not held_out.is_symlink():  # no held-out videos: the corpus is to be memorised
        held_out.symlink_to(TRAIN_CLIPS)
    clips = Stage("decompose", partial(decompose_all, request))
    stages = [clips, *training_stages(folder, recipe, max_steps, clips.name, with_chat=False)]
    done = _run(folder, stages, partial(compare_model, folder), on_progress)
    return MemorySummary(
        comparison=read_comparison(folder),
        minutes=done.minutes,
        total_minutes=done.total_minutes,
        model=folder / MODEL_FOLDER,
        report=folder / REPORT,
    )


def _folder(output: str | Path, is_proof: bool) -> Path:
    """Makes the output folder; refuses one of the other function."""
    folder = local_folder(output)
    if is_proof and (folder / HELD_OUT_CLIPS).is_symlink():
        raise InputError(f"{output} holds an overfitting check; choose another output folder")
    if not is_proof and (folder / "train").exists():
        raise InputError(f"{output} holds a proof; choose another output folder")
    return folder


def _run(folder: Path, stages: Sequence[Stage], measure: Callable[..., object], on_progress: OnProgress) -> Stages:
    """Runs the stages and measures at the end, again if the results were deleted."""
    done = Stages(folder)
    if MEASURING in done.done and not (folder / RESULTS).exists():
        done.done.remove(MEASURING)
    done.run([*stages, Stage(MEASURING, measure, [stage.name for stage in stages])], on_progress)
    return done
