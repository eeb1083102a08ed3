"""Configs of saved models."""

from pathlib import Path

from videolavit.models.folder import ModelFolder


def test_no_config_names_the_folder_that_a_part_was_loaded_from(tmp_path: Path) -> None:
    ModelFolder("tiny").save(tmp_path / "first")
    ModelFolder(tmp_path / "first").save(tmp_path / "second")
    configs = list((tmp_path / "second").rglob("*.json"))
    assert len(configs) > 10
    assert [file.name for file in configs if str(tmp_path) in file.read_text()] == []
