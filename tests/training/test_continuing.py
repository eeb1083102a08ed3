"""New runs that begin with the weights of another: of a model, of a checkpoint, with its moments or without."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.train import train
from tests.commands import printed_by
from tests.training.test_trainer import run, settings, steps_of
from tests.training.token_runs import random_rows, write_run
from tests.training.toys import toy
from videolavit.models.folder import ModelFolder
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.data import DataError
from videolavit.training.parallel import Ranks
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings
from videolavit.training.trainer import Trainer


def begun(folder: Path, checkpoint: Path, **changes: Any) -> Trainer:
    """A run that begins with a checkpoint, before its first step."""
    return Trainer(toy(samples=50), settings(continue_from=str(checkpoint), **changes), Ranks(), folder)


def test_weights_alone_begin_a_run_on_other_data(tmp_path: Path) -> None:
    """With the averaged weights, as in the model that a run ends in; moments, steps and order are new."""
    first = run(tmp_path / "first", steps=10)
    tensors = begun(tmp_path / "second", tmp_path / "first" / "checkpoints" / "step-00000010").tensors()
    for name, value in first.tensors().items():
        if name.startswith("average."):
            for prefix in ("model.", "average."):
                assert tensors[name.replace("average.", prefix, 1)].equal(value), name
        elif name.startswith("optimizer."):
            assert not tensors[name].any(), name
    assert tensors["model.seen"].equal(first.tensors()["model.seen"])
    second = begun(tmp_path / "second", tmp_path / "first" / "checkpoints" / "step-00000010")
    second.run()
    found = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in found if "lr" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[0]["lr"] == pytest.approx(0.01 / 3)
    assert lines[0]["tokens/many"] + lines[0]["tokens/few"] == 12


def test_moments_come_along(tmp_path: Path) -> None:
    first = run(tmp_path / "first", steps=10)
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000010"
    tensors = begun(tmp_path / "second", checkpoint, continue_moments=True).tensors()
    for name, value in first.tensors().items():
        assert tensors[name].equal(value), name
    plain = begun(tmp_path / "third", checkpoint, continue_moments=True, optimizer=OptimizerSettings(lr=0.01))
    assert not any(name.startswith("average.") for name in plain.tensors())
    averaged = run(tmp_path / "plain", steps=5, optimizer=OptimizerSettings(lr=0.01))
    later = begun(tmp_path / "later", tmp_path / "plain" / "checkpoints" / "step-00000005", continue_moments=True)
    assert later.tensors()["average.head.weight"].equal(averaged.tensors()["model.head.weight"])


def test_the_same_call_goes_on_and_another_beginning_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "first", steps=10, keep=9)
    checkpoints = tmp_path / "first" / "checkpoints"
    whole = begun(tmp_path / "whole", checkpoints / "step-00000010")
    whole.run()
    begun(tmp_path / "cut", checkpoints / "step-00000010", steps=20)
    cut = begun(tmp_path / "cut", checkpoints / "step-00000010")
    cut._should_stop = lambda: cut.step == 7
    with pytest.raises(Exception, match="stopped after step 7"):
        cut.run()
    shutil.move(checkpoints / "step-00000010", tmp_path / "moved" / "checkpoints" / "step-00000010")
    again = begun(tmp_path / "cut", tmp_path / "moved" / "checkpoints" / "step-00000010")
    assert again.step == 7
    again.run()
    for name, value in whole.tensors().items():
        assert again.tensors()[name].equal(value), name
    with pytest.raises(CheckpointError, match=r"begun_from\.checkpoint: "):
        begun(tmp_path / "cut", checkpoints / "step-00000005")


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    run(tmp_path / "first", steps=5)
    checkpoint = tmp_path / "first" / "checkpoints" / "step-00000005"
    component = toy()
    component.objective.head = torch.nn.Linear(4, 3)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="another model"):
        Trainer(component, settings(continue_from=str(checkpoint)), Ranks(), tmp_path / "second")
    file = next(checkpoint.glob("shard-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cannot continue from .*: shard-.* is not what the manifest says"):
        begun(tmp_path / "third", checkpoint)
    assert not steps_of(tmp_path / "second")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model = tmp_path_factory.mktemp("first"), ModelFolder("tiny")
    inputs = TrainInputs(train=[str(write_run(folder / "tokens", model, random_rows(model, 20)))])
    train_language_model("tiny", inputs, folder / "run")
    return folder


def train_language_model(model: str | None, inputs: TrainInputs, output: Path, **changes: Any) -> None:
    options: dict[str, Any] = {"steps": 2, "batch": 2, "micro_batch": 2, "log_every": 1, "trackers": ()} | changes
    objective = LanguageModelTraining(sequence_length=192, pack_over=16)
    train("language-model", model, inputs, output, objective=objective, settings=TrainSettings(**options))


def test_a_model_a_checkpoint_and_a_run_are_told_apart(trained: Path, tmp_path: Path) -> None:
    """All three lead to the same first loss on grown data: the run had no average."""
    model = ModelFolder("tiny")
    grown = [*random_rows(model, 20), *random_rows(model, 10, seed=1)]
    inputs = TrainInputs(train=[str(write_run(tmp_path / "grown", model, grown))])
    checkpoint = trained / "run" / "checkpoints" / "step-00000002"
    losses = []
    for number, origin in enumerate((trained / "run" / "model", checkpoint, trained / "run")):
        train_language_model(None, inputs, tmp_path / f"{number}", continue_from=str(origin))
        lines = [json.loads(line) for line in (tmp_path / f"{number}" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
        assert lines[0]["loss"] != pytest.approx(first_loss(inputs, tmp_path), rel=1e-3)
    assert losses[0] == losses[1] == losses[2]
    weights = [load_file(tmp_path / f"{n}" / "model" / "language_model" / "model.safetensors") for n in (0, 1)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def first_loss(inputs: TrainInputs, folder: Path) -> float:
    """Loss of the untrained model in the first step on some data."""
    output = folder / "untrained"
    if not output.exists():
        train_language_model("tiny", inputs, output, steps=1)
    first = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    return float(first["loss"])


def test_mistakes_are_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = TrainInputs(train=[str(trained / "tokens")])
    model = str(trained / "run" / "model")
    for settings_, named, expected in (
        ({"continue_from": model}, "tiny", "continue_from is the model .*; leave the model out"),
        ({"continue_from": model, "continue_moments": True}, None, "which has no moments"),
    ):
        with pytest.raises(DataError, match=expected):
            train_language_model(named, inputs, tmp_path / "run", **settings_)
    (tmp_path / "empty" / "checkpoints" / "step-00000001").mkdir(parents=True)
    for origin in ("empty", "empty/checkpoints/step-00000001"):
        with pytest.raises(CheckpointError, match="checkpoint"):
            train_language_model(None, inputs, tmp_path / "run", continue_from=str(tmp_path / origin))
    words = ["train", "language-model", "--input", trained / "tokens", "--output", tmp_path / "run"]
    assert "--model is missing" in printed_by(capsys, *words, status=2)
    assert "continue_moments goes with" in printed_by(
        capsys, *words, "--model", "tiny", "--continue-moments", "true", status=2
    )
    assert "no model in nowhere" in printed_by(capsys, *words, "--continue-from", "nowhere", status=2)
    assert not (tmp_path / "run").exists()
