"""Streams that go to other processes, to be loaded there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray import cloudpickle

from tests.conftest import moving_texture
from tests.training.test_detokenizer_ranks import built
from tests.training.test_sources import write_run
from tests.training.token_runs import random_rows
from tests.training.token_runs import write_run as write_token_run
from tests.training.toys import toy
from videolavit.media import MediaError, write_mp4
from videolavit.media.errors import CorruptVideo, SourceForbidden, SourceMissing, SourceUnreadable
from videolavit.models.folder import ModelFolder
from videolavit.training.component import Component
from videolavit.training.components.keyframe_detokenizer import KeyframeDetokenizerTraining
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.components.motion_tokenizer import MotionTokenizerTraining
from videolavit.training.components.vision_transformer import VisionTransformerTraining
from videolavit.training.components.visual_tokenizer import VisualTokenizerTraining
from videolavit.training.data import DataError, Item
from videolavit.training.loader import RankSampler, SkippedSample, load_item
from videolavit.training.parallel import Ranks
from videolavit.training.run import TrainTask, train_rank
from videolavit.training.settings import TrainInputs, TrainSettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    write_mp4(moving_texture(60, 96, 128, 0), folder / "video.mp4", 12)
    return write_run(folder / "clips", [{"source": str(folder / "video.mp4")}])


def cached_keyframes(run: str, folder: Path) -> Component:
    settings = KeyframeDetokenizerTraining(height=16, width=16, validation_samples=1, cache=str(folder / "cache"))
    return settings.build(ModelFolder("tiny"), TrainInputs(train=[run]))


def token_rows(run: str, folder: Path) -> Component:
    model = ModelFolder("tiny")
    tokens = write_token_run(folder / "tokens", model, random_rows(model, 8))
    return LanguageModelTraining(sequence_length=256).build(model, TrainInputs(train=[str(tokens)]))


COMPONENTS: dict[str, Callable[[str, Path], Component]] = {
    "motion-tokenizer": lambda run, _: MotionTokenizerTraining().build(ModelFolder("tiny"), TrainInputs(train=[run])),
    "visual-tokenizer": lambda run, _: VisualTokenizerTraining().build(ModelFolder("tiny"), TrainInputs(train=[run])),
    "vision-transformer": lambda run, _: VisionTransformerTraining().build(
        ModelFolder("tiny"), TrainInputs(train=[run])
    ),
    "vae": lambda run, _: built("vae", run),
    "keyframe-detokenizer, cached": cached_keyframes,
    "video-detokenizer": lambda run, _: built("video-detokenizer", run),
    "language-model": token_rows,
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_stream_that_was_sent_loads_the_same(name: str, run: str, tmp_path: Path) -> None:
    component = COMPONENTS[name](run, tmp_path)
    component.stream.take(3)
    sent = cloudpickle.loads(cloudpickle.dumps(component.stream))
    sent.seek(component.stream.state())
    ours, theirs = (
        component.collate(items, [load_item(item) for item in items])
        for items in (component.stream.take(2), sent.take(2))
    )
    assert ours.positions == theirs.positions
    assert ours.inputs.keys() == theirs.inputs.keys()
    assert all(torch.equal(ours.inputs[key], theirs.inputs[key]) for key in ours.inputs)


def test_a_share_is_every_ranks_part_of_each_step_and_the_stream_goes_on_by_whole_steps() -> None:
    found = {}
    for rank in (0, 1):
        stream, share = toy().stream, RankSampler(batch=6, micro_batch=2, rank=rank, world=2)
        found[rank] = [[[item.position for item in part] for part in share.take(stream)] for _ in range(2)]
        assert share.micro_batches == 2
    assert found == {0: [[[0, 2], [4]], [[6, 8], [10]]], 1: [[[1, 3], [5]], [[7, 9], [11]]]}


@pytest.mark.parametrize("error", [SourceMissing, SourceForbidden, SourceUnreadable])
def test_a_file_that_comes_back_is_loaded(error: type[MediaError]) -> None:
    tries: list[int] = []

    def load() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise error("gone")
        return "sample"

    assert load_item(Item(0, "source", load), (0.0, 0.0)) == "sample"
    tries.clear()
    assert load_item(Item(0, "source", load), (0.0,)) == SkippedSample("source", 0, error.__name__, "gone")


def test_what_is_broken_is_tried_once() -> None:
    tries: list[int] = []

    def load() -> None:
        tries.append(1)
        raise CorruptVideo("broken")

    assert isinstance(load_item(Item(0, "source", load)), SkippedSample)
    assert len(tries) == 1


def test_validation_data_without_a_sample_are_an_error(tmp_path: Path) -> None:
    class NothingHeldOut:
        def build(self, model: ModelFolder, inputs: TrainInputs) -> Component:
            return toy(validation=[])

    inputs = TrainInputs(train=["here"], validation=["held-out"])
    task = TrainTask("toy", "tiny", inputs, NothingHeldOut(), TrainSettings(), str(tmp_path))
    with pytest.raises(DataError, match="the validation data held-out have no samples"):
        train_rank(task, Ranks())
