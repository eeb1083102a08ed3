"""Checks of a training worker before the first step."""

from pathlib import Path

import pytest

from pipelines.train_workers import (
    ClusterSettings,
    ClusterTooSmall,
    StorageNotShared,
    _check_cores,
    _check_shared,
    _mark,
    check_counts,
)
from videolavit.training.components.vae import VAETraining
from videolavit.training.run import TrainTask
from videolavit.training.settings import TrainInputs, TrainSettings


def test_a_folder_that_is_not_the_drivers_is_named(tmp_path: Path) -> None:
    token = _mark(tmp_path / "here")
    _check_shared(tmp_path / "here", token)
    _mark(tmp_path / "there")
    for other in ("there", "nowhere"):
        with pytest.raises(StorageNotShared, match=f"{other} on node .* must be on storage that all nodes share"):
            _check_shared(tmp_path / other, token)


def test_fewer_workers_than_asked_for_make_a_run_elastic() -> None:
    assert ClusterSettings(workers=4).scaling(use_gpu=False).num_workers == 4
    assert ClusterSettings(workers=4, min_workers=2).scaling(use_gpu=False).num_workers == (2, 4)
    with pytest.raises(ValueError, match="min_workers must be 1 to workers"):
        ClusterSettings(workers=2, min_workers=3)


def test_workers_must_fit_the_batch() -> None:
    task = TrainTask("vae", "tiny", TrainInputs(train=[]), VAETraining(), TrainSettings(batch=12), "")
    for range_ in ({"workers": 4, "min_workers": 1}, {"workers": 3}, {"workers": 12, "min_workers": 12}):
        check_counts(task, ClusterSettings(**range_))
    with pytest.raises(
        ClusterTooSmall, match=r"12 cannot be divided among 5 workers, which min_workers 4 allows; .* 60"
    ):
        check_counts(task, ClusterSettings(workers=6, min_workers=4))
    with pytest.raises(
        ClusterTooSmall, match="12 cannot be divided among 5 workers; choose a multiple of 5, or another number"
    ):
        check_counts(task, ClusterSettings(workers=5))


def test_loaders_need_workers_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="loaders are for training under Ray Train"):
        ClusterSettings(loaders=1)
    monkeypatch.setattr("pipelines.train_workers.cluster_has", lambda resource: 4.0)
    _check_cores(ClusterSettings(workers=2, loaders=1))
    with pytest.raises(ClusterTooSmall, match="2 workers with 2 loaders each take 6 cores, and the cluster has 4"):
        _check_cores(ClusterSettings(workers=2, loaders=2))
