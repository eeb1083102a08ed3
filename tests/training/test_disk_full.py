"""Writes of a training on a full disk: nothing that was there is lost, and the error is one of the disk."""

from pathlib import Path

import pytest

from tests.disks import disk
from videolavit.models.language_model import byte_tokenizer
from videolavit.models.part_files import save_tokenizer
from videolavit.training.metrics import keep_lines


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
