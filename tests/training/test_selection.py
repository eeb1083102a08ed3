"""Parameters and learning rates by patterns of names."""

from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import run, settings
from tests.training.toys import ToyObjective, toy
from videolavit.training.checkpoint import CheckpointError
from videolavit.training.data import DataError
from videolavit.training.optimizer import Optimizer
from videolavit.training.parallel import Ranks
from videolavit.training.settings import OptimizerSettings
from videolavit.training.trainer import Trainer


def test_only_what_matches_is_trained(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in toy().objective.named_parameters()}
    trainer = run(tmp_path, steps=4, trainable=("head.*", "blocks.1.0.weight"))
    changed = {
        name
        for name, value in trainer.component.objective.named_parameters()
        if not torch.equal(value.detach(), before[name])
    }
    assert changed == {"head.weight", "head.bias", "blocks.1.0.weight"}


def test_a_pattern_without_a_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"trainable: no parameter matches '\*lm_head\*'; there are blocks\.0\.0\.weight"
    ):
        Trainer(toy(), settings(trainable=("head*", "*lm_head*")), Ranks(), tmp_path)


def test_what_is_trained_decides_a_resume(tmp_path: Path) -> None:
    run(tmp_path, stop=11, trainable=("head.*",))
    with pytest.raises(CheckpointError, match="trainable"):
        run(tmp_path, trainable=("blocks.*",))
    assert run(tmp_path, trainable=("head.*",)).step == 20


def test_learning_rates_by_name() -> None:
    objective = ToyObjective()
    scales = {"head.bias": 0.1, "head.*": 3.0}
    optimizer = Optimizer(objective, OptimizerSettings(lr=1e-2, lr_scales=scales), steps=10)
    found = {id(value): group["scale"] for group in optimizer._adamw.param_groups for value in group["params"]}
    by_name = {name: found[id(value)] for name, value in objective.named_parameters() if value.requires_grad}
    assert by_name["head.bias"] == 0.1
    assert by_name["head.weight"] == 3.0
    assert {value for name, value in by_name.items() if name.startswith("blocks")} == {1.0}


def test_a_learning_rate_without_a_parameter_is_refused() -> None:
    with pytest.raises(DataError, match=r"optimizer\.lr_scales: no parameter matches 'frozen\.\*'"):
        Optimizer(ToyObjective(), OptimizerSettings(lr_scales={"frozen.*": 2.0}), steps=10)
