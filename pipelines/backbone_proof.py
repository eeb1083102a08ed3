"""The proof with a real backbone: a language model that people use learns the shipped model's tokens.

Tokenizers and detokenizers are those of the model `shapes` and stay as they are. First the rows of the new ids learn
alone, then adapters and rows together with plain English, then adapters from questions about videos.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from videolavit.evaluation.plain_text import package_texts
from videolavit.files import write_beside
from videolavit.models.assembly import AssembleSettings, assemble
from videolavit.models.language_model.lora import LoRASettings
from videolavit.progress import OnProgress, ignore_progress
from videolavit.records.report import REPORT
from videolavit.records.tokenizer_info import EncodeSettings
from videolavit.synth import QUESTIONS
from videolavit.training.components.language_model import ChatSettings, LanguageModelTraining
from videolavit.training.run import MODEL_FOLDER
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainInputs, TrainSettings
from videolavit.vocabulary.sequences import OrderSettings

from .backbone_results import ASSEMBLED, HELD_OUT_TEXTS, TOKENS_MODEL, measure_backbone
from .proof_results import ProofSummary, read_criteria
from .proof_stages import ProofSizes, corpus_stages, local_folder
from .stages import Stage, Stages
from .tokenize import TokenizeRequest, tokenize
from .train import train

TRAIN_TEXTS = "texts.jsonl"
_ADAPTERS = LoRASettings(rank=16, alpha=32)
_TEXT_SHARE = 0.02  # texts among the samples of a step, a ninth of its ids, so that the language stays
_TEXT_FIRST = OrderSettings(text_first=1.0, drop_text=0.05, drop_keyframe=0.05)  # the last stage teaches answers


@dataclass(frozen=True, kw_only=True)
class BackboneSizes:
    """Sizes of the proof with a backbone.

    Args:
        train_videos: Number of videos in the training corpus; with few the backbone learns them by heart.
        held_out_videos: Number of videos with combinations that the training corpus does not have.
        prompts: Number of held-out captions that videos are generated from.
        questions: Number of held-out videos that are asked about.
        rows_steps: Steps in which the rows of the new ids are trained alone.
        language_steps: Steps with adapters, on videos and texts.
        chat_steps: Steps on questions about videos.
        threads: Threads of a training; the stages run one after the other.
        precision: Precision of the trainings. bfloat16 is for CPUs with AMX; on others it takes twice the time.
        seed: Seed of the corpus.
    """

    train_videos: int = 9000
    held_out_videos: int = 200
    prompts: int = 50
    questions: int = 100
    rows_steps: int = 40
    language_steps: int = 700
    chat_steps: int = 240
    threads: int = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 7

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < (name != "seed"):
                raise ValueError(f"{name} must be at least 1, not {value}")

    @property
    def corpus(self) -> ProofSizes:
        """Sizes of the corpus, whose videos are of the kind that the tokenizers were trained on."""
        return ProofSizes(train_videos=self.train_videos, held_out_videos=self.held_out_videos, seed=self.seed)


def prove_backbone(
    output: str | Path,
    language_model: str | Path,
    sizes: BackboneSizes | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ProofSummary:
    """Trains a language model that is on disk on synthetic videos, and measures what it learned and what it forgot.

    The same call continues where the last one stopped.

    Args:
        output: Local folder of the proof.
        language_model: Folder of a causal language model of `transformers`, or a GGUF file.
        on_progress: Receives the progress of each stage, under the stage's name.

    Raises:
        InputError: the folder cannot be used.
        StageFailed: a stage failed; another call tries it again.
    """
    folder, sizes = local_folder(output).absolute(), sizes or BackboneSizes()
    done = Stages(folder)
    done.run(_stages(folder, str(language_model), sizes), on_progress)
    return ProofSummary(
        criteria=read_criteria(folder),
        minutes=done.minutes,
        total_minutes=done.total_minutes,
        model=folder / "chat" / MODEL_FOLDER,
        report=folder / REPORT,
    )


def _stages(folder: Path, language_model: str, sizes: BackboneSizes) -> list[Stage]:
    """Stages, each after the one before."""
    stages = corpus_stages(folder, sizes.corpus)

    def then(name: str, work: Callable[..., object]) -> None:
        stages.append(Stage(name, work, [stages[-1].name]))

    def trained(name: str, objective: LanguageModelTraining, settings: TrainSettings, inputs: TrainInputs) -> None:
        before = ASSEMBLED if name == "rows" else f"{stages[-1].name}/{MODEL_FOLDER}"
        then(name, partial(_train, folder / before, folder / name, objective, settings, inputs, sizes.threads))

    then("assemble", partial(_assemble, folder / ASSEMBLED, language_model))
    then("texts", partial(_write_texts, folder))
    for split in ("train", "held-out"):
        then(f"tokenize-{split}", partial(_tokenize, folder, f"{split}-clips", f"{split}-tokens"))
    then("tokenize-texts", partial(_tokenize, folder, TRAIN_TEXTS, "text-tokens"))
    videos = TrainInputs(train=[f"{folder}/train-tokens"], validation=[f"{folder}/held-out-tokens"])
    mixed = replace(videos, train=[*videos.train, f"{folder}/text-tokens"], weights=[1 - _TEXT_SHARE, _TEXT_SHARE])
    questions = TrainInputs(train=[f"{folder}/train/{QUESTIONS}"], validation=[f"{folder}/held-out/{QUESTIONS}"])
    rows = LanguageModelTraining(
        sequence_length=512, order=_TEXT_FIRST, new_rows=True, other_lr_scale=1.0, validation_samples=64
    )
    adapters = replace(rows, lora=_ADAPTERS, other_lr_scale=3.0)
    chat = LanguageModelTraining(
        stage="chat",
        lora=_ADAPTERS,
        validation_samples=64,
        chat=ChatSettings(initialise_from="language_model", train_visual=True),
    )
    settings = partial(_settings, sizes.precision)
    trained("rows", rows, settings(sizes.rows_steps, lr=5e-3), videos)
    trained("language", adapters, settings(sizes.language_steps, lr=1e-3), mixed)
    trained("chat", chat, settings(sizes.chat_steps, lr=5e-4, batch=12), questions)
    held_out = sizes.corpus.videos("held-out")
    then("measuring", partial(measure_backbone, folder, sizes.prompts, sizes.questions, held_out, sizes.threads))
    return stages


def _settings(precision: Literal["float32", "bfloat16"], steps: int, *, lr: float, batch: int = 4) -> TrainSettings:
    """Settings of a training of some steps."""
    return TrainSettings(
        steps=steps,
        batch=batch,
        micro_batch=min(batch, 4),
        log_every=5,
        save_every=100,
        validate_every=max(steps // 4, 1),
        parallel=ParallelSettings(precision=precision),
        optimizer=OptimizerSettings(lr=lr, warmup=min(10, steps)),
        trackers=(),
    )


def _assemble(target: Path, language_model: str, on_progress: OnProgress) -> None:
    """Gives the backbone the other parts of the shipped model."""
    if target.exists():
        return
    own = dict.fromkeys(("visual_tokenizer", "motion_tokenizer", "image_diffusion", "video_diffusion"), TOKENS_MODEL)
    assemble(target, AssembleSettings(language_model=language_model, **own), on_progress)


def _write_texts(folder: Path, on_progress: OnProgress) -> None:
    """Writes plain English of installed packages, for training and held out."""
    for name, texts in zip((TRAIN_TEXTS, HELD_OUT_TEXTS), package_texts(), strict=True):
        with write_beside(folder / name) as (unfinished,):
            unfinished.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _tokenize(folder: Path, source: str, target: str, on_progress: OnProgress) -> None:
    encode = EncodeSettings(model=str(folder / ASSEMBLED))
    request = TokenizeRequest(inputs=[str(folder / source)], output=str(folder / target), encode=encode)
    tokenize(request, on_progress).check_complete()


def _train(
    model: Path,
    output: Path,
    objective: LanguageModelTraining,
    settings: TrainSettings,
    inputs: TrainInputs,
    threads: int,
    on_progress: OnProgress,
) -> None:
    torch.set_num_threads(threads)
    train("language-model", str(model), inputs, output, objective=objective, settings=settings, on_progress=on_progress)
