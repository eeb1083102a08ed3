"""`train` as a function: in a process whose stdout and stderr stay empty, with its errors and its summary."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.train import ClusterSettings, train
from tests.conftest import ROOT, environment_without_ray
from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.training.components import UnknownComponent
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.components.motion_tokenizer import MotionTokenizerTraining
from videolavit.training.data import DataError
from videolavit.training.recipes import UnknownRecipe, load_recipe, recipe_names
from videolavit.training.settings import TrainInputs, TrainSettings

PROGRAM = """
import sys
from pathlib import Path

import transformers.modeling_utils  # its first import adds warning filters and an environment variable
from pipelines.train import ClusterSettings, train
from tests.process_state import unchanged
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.settings import TrainInputs, TrainSettings

tokens, output, workers = sys.argv[1:]
seen = []
with unchanged():
    summary = train(
        "language-model",
        "tiny",
        TrainInputs(train=[tokens], validation=[tokens]),
        output,
        objective=LanguageModelTraining(sequence_length=256, show_captions=0),
        settings=TrainSettings(steps=3, batch=2, micro_batch=2, log_every=1, save_every=2),
        cluster=ClusterSettings(workers=int(workers)),
        on_progress=seen.append,
    )
assert summary.model == Path(output) / "model" and (summary.model / "language_model").is_dir()
assert summary.steps == 3 and summary.skipped == {} and summary.seconds > 0
assert summary.metrics["loss"] > 0 and summary.metrics["validation/loss"] > 0
steps = [progress for progress in seen if progress.stage == "train"]
assert [progress.done for progress in steps] == [1, 2, 3, 3], steps
assert {progress.total for progress in steps} == {3} and all("loss" in progress.message for progress in steps)
"""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = ModelFolder("tiny")
    return str(write_run(tmp_path_factory.mktemp("run") / "tokens", model, random_rows(model, 12)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_program_trains_and_nothing_is_printed(workers: int, tokens: str, tmp_path: Path) -> None:
    environment = environment_without_ray()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tokens, str(tmp_path / "run"), str(workers)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mistakes_are_typed(tokens: str, tmp_path: Path) -> None:
    inputs = TrainInputs(train=[tokens])
    with pytest.raises(UnknownComponent, match="there is no component 'engine'; choose one of motion-tokenizer"):
        train("engine", "tiny", inputs, tmp_path)
    with pytest.raises(DataError, match="of language-model is a LanguageModelTraining, not a MotionTokenizerTraining"):
        train("language-model", "tiny", inputs, tmp_path, objective=MotionTokenizerTraining())
    with pytest.raises(ValueError, match="loaders are for training under Ray Train"):
        ClusterSettings(loaders=1)


def test_a_callback_that_raises_stops_the_training(tokens: str, tmp_path: Path) -> None:
    def stop(progress: object) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        train(
            "language-model",
            "tiny",
            TrainInputs(train=[tokens]),
            tmp_path,
            objective=LanguageModelTraining(sequence_length=256),
            settings=TrainSettings(steps=10**6, batch=1, micro_batch=1, log_every=1),
            on_progress=stop,
        )


def test_recipes_are_settings() -> None:
    recipe = load_recipe("tiny", "language-model")
    assert isinstance(recipe.objective, LanguageModelTraining)
    assert recipe.objective.sequence_length == 512
    assert recipe.settings.steps == 2000
    assert recipe.settings.optimizer.betas == (0.9, 0.95)
    for name in recipe_names():
        load_recipe(name, "vae" if name.endswith("video") else "language-model")
    with pytest.raises(UnknownRecipe, match="the recipe tiny-chat has no vae"):
        load_recipe("tiny-chat", "vae")
    with pytest.raises(UnknownRecipe, match="there is no recipe 'medium'; choose one of mini"):
        load_recipe("medium", "vae")
