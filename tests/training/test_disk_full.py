"""Trainings whose disk is full: at every write once, and what is left is what a run with enough room leaves."""

import errno
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.disks import disk, resize
from tests.training.test_trainer import losses, settings
from tests.training.toys import toy
from videolavit.models.language_model import byte_tokenizer
from videolavit.models.part_files import save_tokenizer
from videolavit.training.metrics import draw_curves, keep_lines
from videolavit.training.parallel import Ranks
from videolavit.training.trainer import Trainer

OPTIONS: dict[str, Any] = {
    "steps": 6,
    "save_every": 2,
    "validate_every": 2,
    "show_every": 3,
    "keep": 1,
    "keep_best": "validation/loss",
    "trackers": ("tensorboard",),
    "max_rejects": 1.0,
}


def train(folder: Path) -> None:
    """Trains a toy of which some samples are broken, and leaves no thread that writes, as a process does that ends."""

    def write_samples(objective: nn.Module, folder: Path) -> dict[str, float]:
        (folder / "sample.txt").write_text("x" * 3000)
        return {}

    trainer = None
    try:
        trainer = Trainer(
            toy(broken=frozenset(range(0, 37, 5)), write_samples=write_samples), settings(**OPTIONS), Ranks(), folder
        )
        trainer.run()
        draw_curves(folder)
    finally:
        if trainer is not None:
            trainer._checkpoints._writer.shutdown()


def rejects(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def test_every_write_of_a_training_fails_once(tmp_path: Path) -> None:
    """A disk that grows by a page whenever it was full. Each start continues from what the one before has left."""
    train(tmp_path / "whole")
    failures, reasons = 0, set[object]()
    with disk(tmp_path / "small", "size=4k") as small:
        for pages in itertools.count(1):
            resize(small, f"{4 * pages}k")
            try:
                train(small / "run")
                break
            except OSError as error:
                failures += 1
                reasons.add(error.errno or str(error))
        assert failures > 10
        assert reasons == {errno.ENOSPC}
        assert losses(small / "run") == losses(tmp_path / "whole")
        assert rejects(small / "run") == rejects(tmp_path / "whole")
        kept = {path.name for path in (small / "run" / "checkpoints").iterdir()}
        assert kept == {path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()}
        assert not list((small / "run").rglob(".*"))


def test_lines_of_a_run_that_broke_off(tmp_path: Path) -> None:
    """Neither a cut line, nor those of steps that are done again. A full disk does not take the others."""
    with disk(tmp_path / "small", "size=8k") as small:
        file = small / "metrics.jsonl"
        file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n[]\n{"step": 1, "lo')
        before = file.read_text()
        with (small / "filler").open("wb") as filler:
            filler.write(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            keep_lines(file, 2)
        assert file.read_text() == before
        (small / "filler").unlink()
        keep_lines(file, 2)
        assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_lines(tmp_path / "nothing.jsonl", 2)
    assert not (tmp_path / "nothing.jsonl").exists()


def test_a_tokenizer_on_a_full_disk(tmp_path: Path) -> None:
    """A writer without errors of its own; commands know those of the disk."""
    with disk(tmp_path / "small", "size=4k") as small, pytest.raises(OSError, match="No space left"):
        save_tokenizer(byte_tokenizer(128), small)
