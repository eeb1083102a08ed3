"""A step reads nothing back from the device, and the verdict on its gradient comes later."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from tests.training.test_trainer import QUICK, Exploding, metrics, same, settings
from tests.training.token_runs import random_rows, write_run
from tests.training.toys import toy
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import attention
from videolavit.models.objective import Objective
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.loader import Loader, RankSampler
from videolavit.training.metrics import Interval
from videolavit.training.parallel import Ranks
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainInputs, TrainSettings
from videolavit.training.trainer import Diverged, Trainer

OPERATORS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_consecutive"}
"""Operators whose result or whose size the host must know: on a GPU it waits for all that runs."""

CALLS = {"item", "tolist", "cpu", "numpy"}


class ReadByOperators(TorchDispatchMode):
    """Counts the operators for which the host would wait for a GPU."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATORS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class ReadByCalls(TorchFunctionMode):
    """Counts the methods of tensors that copy to the host."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in CALLS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def as_on_a_gpu(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Attention in one kernel. Documents see each other, which does not matter here."""
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2), None


def reads(trainer: Trainer, steps: int) -> Counter[str]:
    """Counts what the host reads of tensors in some steps."""
    sampler = RankSampler(trainer._batch, trainer.settings.micro_batch, 0, 1)
    loader = iter(Loader(trainer.component.stream, trainer.component.collate, sampler, steps + 1, threads=0))
    interval, found = Interval(), Counter[str]()
    trainer._train(next(loader), interval)
    for data in loader:
        with ReadByCalls(found), ReadByOperators(found):
            interval.add(data, trainer._train(data, interval))
    return found


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """Training of the language model as on a GPU."""
    model = ModelFolder("tiny")
    tokens = write_run(tmp_path / "tokens", model, random_rows(model, 20), shards=2)
    ours = attention.document_attention
    monkeypatch.setattr(attention, "document_attention", as_on_a_gpu)
    component = LanguageModelTraining(sequence_length=256, pack_over=16).build(model, TrainInputs(train=[str(tokens)]))
    options = TrainSettings(
        batch=4,
        micro_batch=2,
        trackers=(),
        parallel=ParallelSettings(precision="bfloat16"),
        optimizer=OptimizerSettings(ema=0.9),
    )
    made = Trainer(component, options, Ranks(), tmp_path / "run")
    made._judges_at_once = False
    yield made
    AttentionInterface.register(attention.ATTENTION_NAME, ours)


def test_a_step_of_the_language_model_reads_one_finished_value(trainer: Trainer) -> None:
    """Norm of the step before, which has run by then; nothing of its own."""
    found = reads(trainer, steps=3)
    assert found == {"_local_scalar_dense": 3}, found


def test_a_read_would_be_found(trainer: Trainer) -> None:
    trainer._judges_at_once = True
    found: Counter[str] = Counter()
    with ReadByCalls(found), ReadByOperators(found):
        value = torch.ones(3)
        value.tolist()
        bool(value.sum() > 0)
        value.nonzero()
    assert found == {"tolist": 1, "_local_scalar_dense": 1, "nonzero": 1}


class WithoutMore(Exploding):
    """Objective that learns by its gradient only."""

    after_step = Objective.after_step
    drop_step = Objective.drop_step


def late(folder: Path, at_once: bool, broken: set[int], **changes: Any) -> Trainer:
    torch.manual_seed(0)
    lines: list[str] = []
    made = Trainer(
        replace(toy(), objective=WithoutMore(broken)),
        settings(**changes),
        Ranks(),
        folder,
        on_progress=lambda progress: lines.append(progress.message),
    )
    made._judges_at_once = at_once
    made.lines = lines  # type: ignore[attr-defined]
    made.run()
    return made


def test_a_late_verdict_changes_nothing(tmp_path: Path) -> None:
    """Skipped steps, checkpoints and metrics are the same."""
    trainers = [late(tmp_path / str(at_once), at_once, {4, 5, 9}, save_every=3) for at_once in (False, True)]
    same(*trainers)
    for name in ("error", "lr"):
        ours, theirs = ([one.get(name) for one in metrics(tmp_path / str(at_once))] for at_once in (False, True))
        assert ours == theirs
    for made in trainers:
        assert [line.partition(":")[0] for line in made.lines if "skipped" in line] == [  # type: ignore[attr-defined]
            "step 5",
            "step 6",
            "step 10",
        ]


def test_a_late_verdict_ends_a_run_that_diverges(tmp_path: Path) -> None:
    optimizer = replace(QUICK["optimizer"], max_skipped=3)
    with pytest.raises(Diverged, match="4 steps in a row"):
        late(tmp_path, False, set(range(8, 20)), optimizer=optimizer)
