"""Measurements of the proof with a backbone: what it learned of videos, what it kept of its language, and its page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videolavit.evaluation.plain_text import text_loss
from videolavit.evaluation.shape import train_shape_classifier
from videolavit.evaluation.synthetic import ask_directions, evaluate_generation
from videolavit.generation.describe import DescribeSettings, Question, answer
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, settings_of_model
from videolavit.models.folder import ModelFolder
from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.records.report import REPORT, render_page
from videolavit.synth import SynthSettings
from videolavit.training.metrics import CURVES
from videolavit.training.run import MODEL_FOLDER

from .proof_results import GENERATED_SHEET, Criterion, criterion, read_manifest, save_generated, write_results

TOKENS_MODEL = "shapes"
"""Model whose tokenizers and detokenizers the backbone gets."""

ASSEMBLED = "assembled"
HELD_OUT_TEXTS = "held-out-texts.jsonl"
MOST_RISE = 0.05
"""Largest rise of the loss on plain English, relative to the loss before."""

READ = 60
"""Held-out texts that are read."""

CHATS = ("Name three colours.", "What is the capital of France?", "Write a sentence about a cat.")
"""Messages that are answered before and after."""

_LANGUAGE_MODELS = {"generation": "language_model", "understanding": "understanding/language_model"}


def measure_backbone(
    folder: Path,
    prompts: int,
    questions: int,
    videos: SynthSettings,
    threads: int,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Measures the trained model on held-out videos and texts, and writes results and page.

    Args:
        folder: Folder of the proof.
        prompts: Held-out captions from which videos are generated.
        questions: Held-out videos that are asked about.
        videos: Content of the held-out videos.
        threads: Threads of the computation.
    """
    torch.set_num_threads(threads)
    before, after = ModelFolder(folder / ASSEMBLED), ModelFolder(folder / "chat" / MODEL_FOLDER)
    criteria = [
        *_of_videos(folder, after, prompts, questions, videos, on_progress),
        *_of_texts(folder, before, after, on_progress),
    ]
    chats = {name: _chats(model) for name, model in (("before", before), ("after", after))}
    write_results(folder, {"criteria": [asdict(one) for one in criteria], "chats": chats})
    _write_page(folder, criteria, chats)


def _of_videos(
    folder: Path, model: ModelFolder, prompts: int, questions: int, videos: SynthSettings, on_progress: OnProgress
) -> list[Criterion]:
    rows, runtime = read_manifest(folder / "held-out"), Runtime(model)
    asked = rows[:questions]
    on_progress(Progress("questions", total=len(asked), message="asking about held-out videos"))
    answers = ask_directions(runtime, [str(folder / "held-out" / row["video"]) for row in asked])
    right = [answer == row["shapes"][0]["direction"] for answer, row in zip(answers, asked, strict=True)]
    sizes = model.sizes
    classifier = train_shape_classifier(replace(videos, split="all"), (sizes.video_height, sizes.video_width))
    settings = settings_of_model(ModelFolder(TOKENS_MODEL), GenerateSettings)
    made = evaluate_generation(runtime, rows[:prompts], classifier, settings, on_progress=on_progress)
    save_generated(folder / GENERATED_SHEET, made)
    return [
        criterion("answers to which direction it moves", float(np.mean(right)), 0.9),
        criterion("direction of generated motion", float(np.mean([one.direction_is_right for one in made])), 0.6),
    ]


def _of_texts(folder: Path, before: ModelFolder, after: ModelFolder, on_progress: OnProgress) -> list[Criterion]:
    texts = [json.loads(line)["text"] for line in (folder / HELD_OUT_TEXTS).read_text().splitlines()[:READ]]
    on_progress(Progress("texts", message="reading plain English before and after"))
    first = _loss(before, "language_model", texts)
    criteria = []
    for name, part in _LANGUAGE_MODELS.items():
        rise = _loss(after, part, texts) / first - 1
        goal = f"below {MOST_RISE:.0%}"
        criteria.append(Criterion(f"rise of the loss on plain English, {name}", rise, goal, rise < MOST_RISE))
    return criteria


def _loss(model: ModelFolder, part: str, texts: Sequence[str]) -> float:
    return text_loss(model.load(part).eval(), model.text_tokenizer(part), texts)


def _chats(model: ModelFolder) -> list[str]:
    return answer(Runtime(model), [Question((text,)) for text in CHATS], DescribeSettings(max_tokens=64))


def _write_page(folder: Path, criteria: Sequence[Criterion], chats: dict[str, Any]) -> None:
    facts = [
        (f"{one.name} (goal {one.goal})", f"{'' if one.reached else 'missed: '}{one.value:.3g}") for one in criteria
    ]
    for number, text in enumerate(CHATS):
        facts += [(f"{text} ({when})", answers[number]) for when, answers in chats.items()]
    pictures = [((folder / GENERATED_SHEET).read_bytes(), "First, middle and last frame of what was generated")]
    stages = ("rows", "language", "chat")
    pictures += [((folder / name / CURVES).read_bytes(), name) for name in stages if (folder / name / CURVES).exists()]
    title = "Proof with a backbone: a language model that people use, and the shipped model's tokens"
    (folder / REPORT).write_text(render_page(title=title, facts=facts, cells=[], pictures=pictures))
