"""Ranks that read their own shares of the weights: the same training, and host memory of a share."""

import contextlib
import json
import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model.objective import NextToken
from videolavit.models.network import ModelError
from videolavit.models.part_files import outline_language_model
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.parallel import Ranks, parallelize
from videolavit.training.run import TrainTask, train_rank
from videolavit.training.settings import OptimizerSettings, ParallelSettings, TrainInputs, TrainSettings
from videolavit.training.shares import make_tensors, read_share

WORLD = 2
LARGE = LlamaConfig(
    vocab_size=4000,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=512,
)
"""Shape of 54 million weights, of which no layer holds much."""


def spread(function: Callable[..., None], *arguments: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, function, arguments), nprocs=WORLD)


def _rank(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    function(*arguments)
    dist.destroy_process_group()


# ---- training -----------------------------------------------------------------------------------------------------


def task_of(folder: Path) -> TrainTask:
    return TrainTask(
        component="language-model",
        model=str(folder / "model"),
        inputs=TrainInputs(train=[str(folder / "tokens")]),
        objective=LanguageModelTraining(sequence_length=256, pack_over=16),
        settings=TrainSettings(
            steps=3, batch=4, micro_batch=2, log_every=1, trackers=(), optimizer=OptimizerSettings(lr=1e-3)
        ),
        output=str(folder / "run"),
    )


def _train(folder: Path) -> None:
    train_rank(task_of(folder), Ranks.here("cpu"))


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_ranks_that_read_their_shares_train_as_one_does(tmp_path: Path) -> None:
    model = ModelFolder("tiny")
    for name in ("alone", "pair"):
        (tmp_path / name).mkdir()
        model.save(tmp_path / name / "model")
        write_run(tmp_path / name / "tokens", ModelFolder(tmp_path / name / "model"), random_rows(model, 20), shards=2)
    _train(tmp_path / "alone")
    spread(_train, tmp_path / "pair")
    assert losses(tmp_path / "pair") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    first, last = losses(tmp_path / "pair")[0], losses(tmp_path / "pair")[-1]
    assert first != last


def _train_new_rows(folder: Path) -> None:
    task = task_of(folder)
    objective = replace(task.objective, new_rows=True)  # type: ignore[type-var]
    optimizer = replace(task.settings.optimizer, weight_decay=0.1)
    train_rank(
        replace(task, objective=objective, settings=replace(task.settings, optimizer=optimizer)), Ranks.here("cpu")
    )


@pytest.mark.parametrize("world", [1, 2])
def test_rows_of_codes_are_trained_and_all_else_stays(world: int, tmp_path: Path) -> None:
    """Also where the tables are shared out over ranks, and with a decay of weights."""
    model = ModelFolder("tiny")
    model.save(tmp_path / "model")
    write_run(tmp_path / "tokens", ModelFolder(tmp_path / "model"), random_rows(model, 20), shards=2)
    if world == 1:
        _train_new_rows(tmp_path)
    else:
        spread(_train_new_rows, tmp_path)
    before = ModelFolder(tmp_path / "model").load("language_model").state_dict()
    after = ModelFolder(tmp_path / "run" / "model").load("language_model").state_dict()
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert changed == ["model.embed_tokens.weight", "lm_head.weight"]
    texts = model.vocabulary.text_size
    for name in changed:
        assert torch.equal(after[name][:texts], before[name][:texts])
        assert not torch.equal(after[name][texts:], before[name][texts:])


def test_an_outline_is_the_model_once_it_is_filled(tmp_path: Path) -> None:
    """Buffers that no file holds too."""
    made = LlamaForCausalLM(LlamaConfig(**LARGE.to_dict() | {"num_hidden_layers": 1, "hidden_size": 64}))
    made.half().save_pretrained(tmp_path)
    stored = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    network = outline_language_model(tmp_path)
    assert all(value.is_meta for value in network.parameters())
    make_tensors(network, torch.device("cpu"))
    read_share(network, tmp_path)
    theirs = dict(stored.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in network.named_parameters())
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(network.eval()(ids).logits, stored.eval()(ids).logits)


def test_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    shape = LARGE.to_dict() | {"num_hidden_layers": 1, "hidden_size": 64}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path)
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**shape | {"vocab_size": 4001}))
    make_tensors(network, torch.device("cpu"))
    with pytest.raises(ModelError, match="cannot load"):
        read_share(network, tmp_path)


# ---- memory -------------------------------------------------------------------------------------------------------


def _anonymous() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextlib.contextmanager
def _watched(peaks: list[int]) -> Iterator[None]:
    """Adds the largest anonymous memory while the body runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            peaks.append(_anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _measure(model: Path, results: Path) -> None:
    """Measures by how much a rank grows while it gets its share. Mapped files do not count: they are cache."""
    ranks = Ranks.here("cpu")
    _share_of(model / "small", ranks)  # loads what the first call loads
    before, peaks = _anonymous(), list[int]()
    with _watched(peaks):
        objective = _share_of(model / "large", ranks)
    share = sum(value.to_local().nbytes for value in objective.parameters())  # type: ignore[attr-defined]
    whole = sum(value.numel() * value.element_size() for value in objective.parameters())
    found = {"grown": max(peaks) - before, "share": share, "whole": whole}
    (results / f"{ranks.rank}.json").write_text(json.dumps(found))


def _share_of(folder: Path, ranks: Ranks) -> NextToken:
    network = outline_language_model(folder)
    objective = NextToken(network)
    parallelize(objective, ParallelSettings(), ranks)
    read_share(network, folder)
    return objective


def _save(folder: Path) -> None:
    LlamaForCausalLM(LARGE).save_pretrained(folder / "large")
    LlamaForCausalLM(LlamaConfig(**LARGE.to_dict() | {"num_hidden_layers": 1, "hidden_size": 64})).save_pretrained(
        folder / "small"
    )


def test_host_memory_of_a_rank_stays_below_twice_its_share(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_save, args=(tmp_path,))
    process.start()
    process.join()
    spread(_measure, tmp_path, tmp_path)
    for rank in range(WORLD):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["share"] == pytest.approx(found["whole"] / WORLD, rel=0.01)
        assert found["share"] > 100e6
        assert found["grown"] < 2 * found["share"], found
