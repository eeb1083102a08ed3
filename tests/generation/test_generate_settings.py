"""Settings of generation that suit a model, where none are given."""

import shutil
from pathlib import Path

import pytest

from jobs.common import pick
from jobs.generate import make_parser
from jobs.models import parse_for_model
from videolavit.generation.reconstruct import ReconstructSettings
from videolavit.generation.settings import GenerateSettings, settings_of_model
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import finish_model_folder
from videolavit.models.network import ModelError


@pytest.fixture
def folder(model_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_path, tmp_path / "model")
    name_settings(tmp_path / "model", max_guidance=1.5, temperature=0.5)
    return tmp_path / "model"


def name_settings(folder: Path, **settings: object) -> None:
    finish_model_folder(folder, ModelFolder(folder).sizes, trained=[], generation=settings)


def test_a_model_names_its_own(folder: Path) -> None:
    model = ModelFolder(folder)
    assert settings_of_model(model, GenerateSettings) == GenerateSettings(max_guidance=1.5, temperature=0.5)
    assert settings_of_model(model, ReconstructSettings) == ReconstructSettings(max_guidance=1.5)
    assert settings_of_model(ModelFolder("tiny"), GenerateSettings) == GenerateSettings()


def test_a_copy_of_the_model_keeps_them(folder: Path, tmp_path: Path) -> None:
    ModelFolder(folder).save(tmp_path / "copy")
    assert settings_of_model(ModelFolder(tmp_path / "copy"), GenerateSettings).max_guidance == 1.5


def test_options_and_config_files_come_before_the_models_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {folder}\ntemperature: 0.7\n")
    for words in (
        ["image", "--model", str(folder), "--temperature", "0.7"],
        ["image", "--config", str(tmp_path / "config.yaml")],
    ):
        options = parse_for_model(make_parser(), words, GenerateSettings)
        assert pick(GenerateSettings, options) == GenerateSettings(max_guidance=1.5, temperature=0.7)


def test_a_printed_config_holds_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_for_model(make_parser(), ["image", "--model", str(folder), "--print-config"], GenerateSettings)
    assert end.value.code == 0
    assert "max_guidance: 1.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_guidanse": 2}, "unknown settings of generation: max_guidanse"), ({"fps": "six"}, "fps: ")],
)
def test_wrong_settings_are_named(folder: Path, settings: dict[str, object], message: str) -> None:
    name_settings(folder, **settings)
    with pytest.raises(ModelError, match=message):
        settings_of_model(ModelFolder(folder), GenerateSettings)
