"""A step computed again: figures of the run to the bit, and the sample that made them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import replay as job
from pipelines.train import train
from tests.commands import printed_by
from tests.training.test_trainer import run
from tests.training.token_runs import random_rows, write_run
from tests.training.toys import toy
from videolavit.models.folder import ModelFolder
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.replay import ReplayedStep, replay
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

STEPS = 7


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, model = tmp_path_factory.mktemp("tokens"), ModelFolder("tiny")
    return [write_run(folder / name, model, random_rows(model, 20, seed)) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def trained(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run with checkpoints after the steps 3, 6 and 7."""
    output = tmp_path_factory.mktemp("run") / "run"
    train(
        "language-model",
        "tiny",
        TrainInputs(train=[str(source) for source in sources]),
        output,
        objective=LanguageModelTraining(sequence_length=192, pack_over=16, noise=0.1),
        settings=TrainSettings(steps=STEPS, batch=6, micro_batch=2, log_every=1, save_every=3, keep=9, trackers=()),
    )
    return output


def logged(run: Path, step: int) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if line["step"] == step)


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_step_comes_again_bit_for_bit(step: int, trained: Path, sources: list[Path]) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    found, seen = replay(trained, step), logged(trained, step)
    assert (found.loss, found.grad_norm) == (seen["loss"], seen["grad_norm"])
    for name in ("text", "visual", "motion", *(f"source_loss/{source}" for source in sources)):
        assert found.metrics[name] == found.logged[name] == seen[name]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    check_samples(found, [str(source) for source in sources])


def check_samples(found: ReplayedStep, sources: list[str]) -> None:
    """The samples make up the loss of the step, and those of each source its loss in the ledger."""
    assert {sample.source for sample in found.samples} == set(sources)
    for source in (None, *sources):
        chosen = [sample for sample in found.samples if source in (None, sample.source)]
        mean = sum(sample.loss * sample.positions for sample in chosen) / sum(sample.positions for sample in chosen)
        assert mean == pytest.approx(found.metrics["loss" if source is None else f"source_loss/{source}"], rel=1e-5)
    assert {sample.micro_batch for sample in found.samples} == {0, 1, 2}


def test_another_micro_batch_agrees_up_to_rounding(trained: Path) -> None:
    found, seen = replay(trained, 5, micro_batch=6), logged(trained, 5)
    assert found.loss == pytest.approx(seen["loss"], rel=1e-4)
    assert found.grad_norm == pytest.approx(seen["grad_norm"], rel=1e-4)


def test_a_sample_that_made_a_spike_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that repeat themselves are learned soon; the one that does not stands out."""
    model = ModelFolder("tiny")
    rows: list[Any] = [("ab" * 20, []) for _ in range(40)]
    rows[17] = ("".join(np.random.default_rng(0).permutation(list("qwertyuiopzxcvbnm,.!0123456789"))), [])
    tokens = write_run(tmp_path / "tokens", model, rows)
    settings = TrainSettings(
        steps=30,
        batch=8,
        micro_batch=8,
        log_every=1,
        save_every=10,
        keep=9,
        trackers=(),
        optimizer=OptimizerSettings(lr=3e-3, schedule="constant"),
    )
    output = tmp_path / "run"
    objective = LanguageModelTraining(sequence_length=192, packing=False)
    train("language-model", "tiny", TrainInputs(train=[str(tokens)]), output, objective=objective, settings=settings)
    spike = max(range(20, 31), key=lambda step: logged(output, step)["grad_norm"])
    words = [str(output), "--step", str(spike)]
    capsys.readouterr()
    job.main([*words, "--json"])
    printed = json.loads(capsys.readouterr().out)
    worst = max(printed["samples"], key=lambda sample: sample["loss"])
    assert worst["sample_id"] == "tokens-17"
    assert worst["loss"] > 2 * printed["loss"]
    job.main([*words, "--top", "1"])
    shown = capsys.readouterr().out
    assert "tokens-17" in shown
    assert "the 1 of 8 with the largest loss" in shown


def test_samples_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    """In a micro batch of their own too; the ledger has the sources that were there."""
    run(tmp_path, toy(broken=frozenset(range(37))), batch=4, micro_batch=1, max_rejects=1.0)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {name for line in found for name in line if name.startswith("source_loss/")} == {"source_loss/few"}


def test_two_ranks_are_computed_by_two_processes(trained: Path) -> None:
    """Up to rounding the figures are those of one rank; the samples are those of both."""
    found, seen = replay(trained, 5, workers=2), logged(trained, 5)
    assert found.world == 2
    assert found.loss == pytest.approx(seen["loss"], rel=1e-4)
    assert found.grad_norm == pytest.approx(seen["grad_norm"], rel=1e-4)
    assert {sample.rank for sample in found.samples} == {0, 1}
    whole = replay(trained, 5)
    assert sorted(one.sample_id for one in found.samples) == sorted(one.sample_id for one in whole.samples)


def test_what_cannot_be_replayed_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no folder of a training" in printed_by(capsys, "replay", tmp_path, "--step", 1, status=2)
    assert f"has the steps 1 to {STEPS}, not 9" in printed_by(capsys, "replay", trained, "--step", 9, status=2)
    assert "there is no step 0" in printed_by(capsys, "replay", trained, "--step", 0, status=2)


def test_threads_stay_as_they_were(trained: Path) -> None:
    before = torch.get_num_threads()
    replay(trained, 1)
    assert torch.get_num_threads() == before
