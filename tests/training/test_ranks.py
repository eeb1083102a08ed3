"""Two real processes and gloo: FSDP, and runs that go on with another number of ranks."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.training.test_trainer import losses, run, same, settings
from tests.training.toys import toy
from videolavit.training.data import DataError
from videolavit.training.loader import Loader, RankSampler
from videolavit.training.parallel import Ranks
from videolavit.training.settings import ParallelSettings
from videolavit.training.trainer import Trainer


def spread(folder: Path, world: int = 2, **changes: Any) -> None:
    """Trains the toy on several ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (world, port, folder, changes), nprocs=world)


def _rank(rank: int, world: int, port: int, folder: Path, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    Trainer(toy(), settings(**changes), Ranks.here("cpu"), folder).run()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, validate_every=10)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    spread(folder, steps=20, validate_every=10, micro_batch=4)
    return folder


def test_two_ranks_train_as_one_does(alone: tuple[Path, Trainer], pair: Path) -> None:
    assert [one[0] for one in losses(pair)] == list(range(1, 21))
    for ours, theirs in zip(losses(pair), losses(alone[0]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (pair, alone[0])]
    for key in ("validation/loss", "tokens/many", "seen"):
        ours, theirs = ([one[key] for one in found if key in one] for found in lines)
        assert ours == pytest.approx(theirs, rel=1e-3), key


def test_one_rank_goes_on_where_two_stopped(alone: tuple[Path, Trainer], pair: Path) -> None:
    assert json.loads((pair / "checkpoints" / "step-00000020" / "manifest.json").read_text())["world"] == 2
    merged = Trainer(toy(), settings(), Ranks(), pair)
    assert merged.step == 20
    same(alone[1], merged, rtol=1e-3, atol=1e-5)


def test_two_ranks_go_on_where_one_stopped(alone: tuple[Path, Trainer], tmp_path: Path) -> None:
    run(tmp_path, stop=11)
    spread(tmp_path)
    assert [one[0] for one in losses(tmp_path)] == list(range(1, 21))
    for ours, theirs in zip(losses(tmp_path), losses(alone[0]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_copies_on_groups_of_ranks_stay_equal(alone: tuple[Path, Trainer], tmp_path: Path) -> None:
    spread(tmp_path, parallel=ParallelSettings(shard=1, recompute="full"))
    for ours, theirs in zip(losses(tmp_path), losses(alone[0]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_no_sample_is_dropped_or_doubled_by_the_ranks() -> None:
    whole = toy().stream.take(48)
    positions = []
    for rank in range(3):
        component = toy()
        data = Loader(component.stream, component.collate, RankSampler(12, 3, rank, 3), 4, threads=0)
        positions += [position for step in data for batch in step.batches for position in batch.positions]
    assert sorted(positions) == [item.position for item in whole]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 10 cannot be divided among 4 ranks"):
        RankSampler(batch=10, micro_batch=5, rank=0, world=4)
