"""Settings of generation that suit a model, where none are given."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import generate
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
    finish_model_folder(folder, replace(ModelFolder(folder).facts, generation=settings))


def test_a_model_names_its_own(folder: Path) -> None:
    model = ModelFolder(folder)
    assert settings_of_model(model, GenerateSettings) == GenerateSettings(max_guidance=1.5, temperature=0.5)
    assert settings_of_model(model, ReconstructSettings) == ReconstructSettings(max_guidance=1.5)
    assert settings_of_model(ModelFolder("tiny"), GenerateSettings) == GenerateSettings()


def test_a_copy_of_the_model_keeps_them(folder: Path, tmp_path: Path) -> None:
    ModelFolder(folder).save(tmp_path / "copy")
    assert settings_of_model(ModelFolder(tmp_path / "copy"), GenerateSettings).max_guidance == 1.5


@pytest.mark.parametrize("is_option", [True, False])
def test_options_and_config_files_come_before_the_models_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_option: bool
) -> None:
    (tmp_path / "config.yaml").write_text(f"model: {folder}\ntemperature: 0.7\n")
    given = ["--model", folder, "--temperature", "0.7"] if is_option else ["--config", tmp_path / "config.yaml"]
    with pytest.raises(SystemExit) as end:
        generate.main(["image", *map(str, given), "--print-config"])
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["temperature"], printed["max_guidance"]) == (0.7, 1.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_guidanse": 2}, "unknown settings of generation: max_guidanse"), ({"fps": "six"}, "fps: ")],
)
def test_wrong_settings_are_named(folder: Path, settings: dict[str, object], message: str) -> None:
    name_settings(folder, **settings)
    with pytest.raises(ModelError, match=message):
        settings_of_model(ModelFolder(folder), GenerateSettings)
