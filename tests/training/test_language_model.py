"""Pre-training on token runs: it learns, and refuses tokens that mean something else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tokens import write_model
from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model.objective import NextToken
from videolavit.models.objective import Draws
from videolavit.training.component import Component
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.data import DataError
from videolavit.training.settings import TrainInputs
from videolavit.vocabulary.sequences import OrderSettings

SETTINGS = LanguageModelTraining(sequence_length=512, pack_over=16, validation_samples=8)


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return ModelFolder("tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: ModelFolder) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "tokens", model, random_rows(model, 20), shards=2)


def losses(component: Component, steps: int) -> list[dict[str, float]]:
    optimizer = torch.optim.AdamW(component.objective.parameters(), lr=3e-3)
    items = component.stream.take(4)
    batch = component.collate(items, [item.load() for item in items])
    measured = []
    for _ in range(steps):
        sums = component.objective(batch.inputs, Draws(0, batch.positions))
        measured.append({name: float(sums[name].detach()) / count for name, count in batch.counts.items()})
        (sums["loss"] / batch.counts["loss"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return measured


def test_it_learns_every_modality(model: ModelFolder, run: Path) -> None:
    component = SETTINGS.build(model, TrainInputs(train=[str(run)], validation=[str(run)]))
    first, *_, last = losses(component, 12)
    assert all(last[name] < first[name] - 0.3 for name in ("loss", "text", "visual", "motion"))
    assert 1 <= len(component.validation) <= 8
    assert component.objective.parts().keys() == {"language_model"}
    assert len(component.objective.units()) == 2


def test_captions_are_weighed(tmp_path: Path, model: ModelFolder) -> None:
    """Behind its own caption a clip's loss is that of training; behind another's it is another."""
    rows = random_rows(model, 30)[2::3]
    captioned = [("?" if text is None else text, clips) for text, clips in rows]
    run = write_run(tmp_path / "run", model, captioned)
    order = OrderSettings(text_first=1.0, drop_text=0.0, drop_keyframe=0.0)
    component = replace(SETTINGS, order=order).build(model, TrainInputs(train=[str(run)], validation=[str(run)]))
    assert component.write_samples is not None
    with torch.no_grad():
        metrics = component.write_samples(component.objective, tmp_path)
    whole = replace(SETTINGS, order=order, validation_samples=100)
    items = whole.build(model, TrainInputs(train=[str(run)], validation=[str(run)])).validation
    batch = component.collate(items, [item.load() for item in items])
    with torch.no_grad():
        sums = component.objective(batch.inputs, Draws(0, batch.positions))
    for kind in ("visual", "motion"):
        assert metrics[f"{kind}_own_caption"] == pytest.approx(float(sums[kind]) / batch.counts[kind], rel=1e-5)
        assert metrics[f"{kind}_other_caption"] != metrics[f"{kind}_own_caption"]


def test_embeddings_and_head_have_a_learning_rate_of_their_own(model: ModelFolder) -> None:
    objective = NextToken(model.load("language_model"), other_lr_scale=2.5)
    scaled = {name for name, _ in objective.named_parameters() if objective.lr_scale(name) != 1}
    assert scaled == {"model.model.embed_tokens.weight", "model.lm_head.weight"}


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, model: ModelFolder, run: Path) -> None:
    model.save(tmp_path / "model")
    changed = ModelFolder("tiny").load("motion_tokenizer", dtype=None)
    with torch.no_grad():
        changed.quantize.embedding.weight[0, 0] += 1
    changed.save(tmp_path / "model" / "motion_tokenizer")
    with pytest.raises(
        DataError, match=r"0\.parquet was made by another motion_tokenizer \(\w{12}\) than that of .*model"
    ):
        SETTINGS.build(ModelFolder(tmp_path / "model"), TrainInputs(train=[str(run)]))


def test_another_vocabulary_is_refused(tmp_path: Path, model: ModelFolder) -> None:
    foreign = ModelFolder(write_model(tmp_path / "foreign"))
    run = write_run(tmp_path / "run", foreign, [("text", [])])
    with pytest.raises(DataError, match="has 64 visual codes, the vocabulary of tiny has 512"):
        SETTINGS.build(model, TrainInputs(train=[str(run)]))


def test_a_folder_without_shards_is_refused(tmp_path: Path, model: ModelFolder) -> None:
    with pytest.raises(DataError, match=r"no token shards in .* make them with `videolavit tokenize`"):
        SETTINGS.build(model, TrainInputs(train=[str(tmp_path)]))


def test_rows_longer_than_the_context_are_refused(model: ModelFolder, run: Path) -> None:
    with pytest.raises(DataError, match="sequence_length 8192 exceeds the context of tiny, 4096"):
        replace(SETTINGS, sequence_length=8192).build(model, TrainInputs(train=[str(run)]))


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to at most 1"):
        OrderSettings(drop_text=0.6, drop_keyframe=0.6)
