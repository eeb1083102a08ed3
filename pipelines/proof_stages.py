"""Stages of the proof: its corpus, its trainings, and the tokenizing between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import torch

from videolavit.files import write_beside
from videolavit.generation.settings import differing_settings
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress
from videolavit.records.files import InputError
from videolavit.records.parquet import ParquetReader
from videolavit.records.shards import TOKEN_SHARDS, Ledger
from videolavit.records.storage import Folder, StorageSettings
from videolavit.records.tokenizer_info import EncodeSettings
from videolavit.synth import MANIFEST, QUESTIONS, SynthSettings, render_corpus
from videolavit.training.recipes import has_recipe, load_recipe, recipe_file
from videolavit.training.run import MODEL_FOLDER, merge_models
from videolavit.training.settings import TrainInputs

from .decompose import DecomposeRequest, decompose
from .proof_corpus import compare
from .proof_results import EXAMPLES, GENERATION, measure
from .stages import Stage
from .tokenize import TokenizeRequest, tokenize
from .train import train

TRAIN_CLIPS, HELD_OUT_CLIPS, JOINED = "train-clips", "held-out-clips", "joined"
VISION_TRANSFORMER = "vision-transformer"


@dataclass(frozen=True)
class ProofSizes:
    """Sizes of the proof.

    Args:
        train_videos: Number of videos in the training corpus.
        held_out_videos: Number of videos with combinations that the training corpus does not have.
        prompts: Number of held-out captions that videos are generated from.
        recipe: Recipe of the trainings, in `config/training/`, and preset that they start from.
        max_steps: Largest number of steps of each training; None for the recipe's own.
        shape_scale: Size of the shapes, relative to those of `SynthSettings`.
        speed: Speed of the fastest shapes, in shorter frame sides per second.
        background_contrast: Contrast of the background's texture, from 0, which is plain, to 1.
        seed: Seed of the corpus.
    """

    train_videos: int = 3000
    held_out_videos: int = 200
    prompts: int = 100
    recipe: str = "tiny"
    max_steps: int | None = None
    shape_scale: float = 1.75
    speed: float = 0.09
    background_contrast: float = 0.0
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("train_videos", "held_out_videos", "prompts", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        recipe_file(self.recipe, "visual-tokenizer")
        self.videos("train")

    def videos(self, split: str) -> SynthSettings:
        """Content of the videos of a split."""
        return SynthSettings(
            width=192,
            height=128,
            fps=6,
            max_shapes=1,
            split=split,  # type: ignore[arg-type]
            shape_scale=self.shape_scale,
            speed=self.speed,
            background_contrast=self.background_contrast,
        )


@dataclass(frozen=True)
class _Training:
    """Training of one component in the folder of a proof.

    Args:
        folder: Folder of the proof.
        name: Name of the stage and of the folder of the run.
        component: Component that is trained.
        model: Model that it starts from.
        recipe: Recipe of its settings.
        max_steps: Largest number of steps; None for the recipe's own.
        data: Training and held-out data.
        joined: Models whose parts make up `model`; empty where it is there.
        cache: Folder for the outputs of frozen networks, for components that have one.
    """

    folder: Path
    name: str
    component: str
    model: Path
    recipe: str
    max_steps: int | None
    data: tuple[str, str] = (TRAIN_CLIPS, HELD_OUT_CLIPS)
    joined: Sequence[Path] = ()
    cache: Path | None = None

    @property
    def made(self) -> Path:
        """Model with the trained part."""
        return self.folder / self.name / MODEL_FOLDER


def local_folder(output: str | Path) -> Path:
    """Makes the folder of a proof. Raises InputError where it cannot be used."""
    if "://" in str(output):
        raise InputError(f"{output} is no local folder; choose one as the output")
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use {output}: {error}") from None
    return Path(output)


def corpus_stages(folder: Path, sizes: ProofSizes) -> list[Stage]:
    """Renders and decomposes both splits, one after the other, since decomposing takes all cores."""
    stages: list[Stage] = []

    def then(name: str, work: Callable[..., object]) -> None:
        stages.append(Stage(name, work, [stage.name for stage in stages[-1:]]))

    for number, (split, videos) in enumerate((("train", sizes.train_videos), ("held-out", sizes.held_out_videos))):
        corpus, settings, seed = f"{folder}/{split}", sizes.videos(split), sizes.seed + number
        then(f"corpus-{split}", partial(render_corpus, corpus, videos, settings, seed=seed, questions=True))
        request = DecomposeRequest(inputs=[f"{corpus}/{MANIFEST}"], output=f"{corpus}-clips")
        then(f"decompose-{split}", partial(decompose_all, request))
    return stages


def training_stages(folder: Path, recipe: str, max_steps: int | None, clips: str, with_chat: bool) -> list[Stage]:
    """Trainings and the tokenizing between them, in the order in which others wait for them.

    Args:
        clips: Stage that makes the last clips.
        with_chat: Tunes the language model on the questions of the corpus.
    """
    start, tokenizers, parts, cache = Path(recipe), folder / "tokenizers", folder / "video-parts", folder / "cache"
    task = partial(_Training, folder, recipe=recipe, max_steps=max_steps)
    motion = task("motion-tokenizer", "motion-tokenizer", start)
    vae = task("keyframe-vae", "vae", start)
    video_vae = task("video-vae", "vae", vae.made, recipe=f"{recipe}-video")
    videos = task("video-detokenizer", "video-detokenizer", parts, joined=[video_vae.made, motion.made], cache=cache)
    features = task(VISION_TRANSFORMER, VISION_TRANSFORMER, vae.made)
    has_features = has_recipe(recipe, VISION_TRANSFORMER)  # else they are those of random weights
    before = features if has_features else vae
    pictures = task("visual-tokenizer", "visual-tokenizer", before.made)
    keyframes = task("keyframe-detokenizer", "keyframe-detokenizer", pictures.made, cache=cache)
    language = task("language-model", "language-model", tokenizers, data=("train-tokens", "held-out-tokens"))
    questions = (f"train/{QUESTIONS}", f"held-out/{QUESTIONS}")
    chat = task("chat", "language-model", language.made, recipe=f"{recipe}-chat", data=questions)
    tokenizing = {
        split: partial(_tokenize, folder, split, tokenizers, [motion.made, pictures.made])
        for split in ("train", "held-out")
    }

    def trained(one: _Training, *after: str) -> Stage:
        return Stage(one.name, partial(_train, one), after)

    stages = [
        trained(motion, clips),
        trained(vae, clips),
        trained(video_vae, vae.name),
        trained(videos, video_vae.name, motion.name),
        *([trained(features, vae.name)] if has_features else []),
        trained(pictures, before.name),
        trained(keyframes, pictures.name),
        Stage("tokenize-train", tokenizing["train"], (motion.name, pictures.name)),
        Stage("tokenize-held-out", tokenizing["held-out"], ("tokenize-train",)),
        trained(language, "tokenize-held-out"),
    ]
    return [*stages, trained(chat, language.name)] if with_chat else stages


def decompose_all(request: DecomposeRequest, on_progress: OnProgress) -> None:
    """Runs a decomposition to its end. Raises RunIncomplete as well."""
    decompose(request, on_progress).check_complete()


def _train(task: _Training, on_progress: OnProgress) -> None:
    _join(task.joined, task.model)
    recipe = load_recipe(task.recipe, task.component)
    objective, settings = recipe.objective, recipe.settings
    if task.cache is not None:
        objective = replace(objective, cache=str(task.cache))  # type: ignore[type-var]
    if task.max_steps is not None:
        settings = replace(settings, steps=min(task.max_steps, settings.steps))
    data, held_out = (str(task.folder / name) for name in task.data)
    inputs = TrainInputs(train=[data], validation=[held_out], seed=settings.seed)
    output = task.folder / task.name
    train(
        task.component,
        str(task.model),
        inputs,
        output,
        objective=objective,
        settings=settings,
        on_progress=on_progress,
    )


def _tokenize(folder: Path, split: str, model: Path, joined: Sequence[Path], on_progress: OnProgress) -> None:
    _join(joined, model)
    encode = EncodeSettings(model=str(model))
    clips, tokens = (f"{folder}/{split}-{kind}" for kind in ("clips", "tokens"))
    tokenize(TokenizeRequest(inputs=[clips], output=tokens, encode=encode), on_progress).check_complete()


def measure_model(folder: Path, sizes: ProofSizes, on_progress: OnProgress) -> None:
    _join_all(folder, "chat", folder / JOINED)
    if not (folder / MODEL_FOLDER).exists():  # half precision costs nothing, and halves the files
        model = ModelFolder(folder / JOINED)
        fewest = _fewest_codes(Folder(str(folder / "train-tokens"), StorageSettings()))
        generation = differing_settings(replace(GENERATION, min_visual=fewest))
        with write_beside(folder / MODEL_FOLDER) as (unfinished,):
            model.save(unfinished, torch.float16, generation=generation, examples=EXAMPLES)
    measure(folder, sizes.prompts, sizes.videos("held-out"), on_progress)


def _fewest_codes(tokens: Folder) -> int:
    """Smallest number of codes of a keyframe in a token run, at least 1: no picture that is generated has fewer."""
    fewest = []
    for name in Ledger(tokens, TOKEN_SHARDS).committed():
        with tokens.open(f"{TOKEN_SHARDS.folder}/{name}") as file:
            clips = ParquetReader(file).read(columns=["clips"])["clips"].combine_chunks().flatten()
        fewest.append(int(pc.min(pc.list_value_length(clips.field("visual_tokens"))).as_py()))
    return max(1, min(fewest))  # a tokenizer that has hardly been trained may drop every patch


def compare_model(folder: Path, on_progress: OnProgress) -> None:
    _join_all(folder, "language-model", folder / MODEL_FOLDER)
    compare(folder, on_progress)


def _join_all(folder: Path, language: str, target: Path) -> None:
    """Joins what was trained side by side; `language` is the stage whose language model is taken.

    The keyframe detokenizer comes last: it trains on what the visual tokenizer began, which the language model has too.
    """
    _join([folder / name / MODEL_FOLDER for name in ("video-detokenizer", language, "keyframe-detokenizer")], target)


def _join(models: Sequence[Path], target: Path) -> None:
    """Joins models that were trained side by side, unless that is done or nothing is to join."""
    if models and not target.exists():
        merge_models([ModelFolder(model) for model in models], target)
