"""Training of the vision transformer on captions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import moving_texture
from tests.training.test_sources import write_run
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.models.objective import SAMPLE_LOSSES, Draws
from videolavit.models.visual_tokenizer.pretraining import VisionTransformerObjective, word_buckets
from videolavit.training.component import Component
from videolavit.training.components.vision_transformer import VisionTransformerTraining
from videolavit.training.settings import TrainInputs

COLOURS = {"red": (255, 40, 40), "green": (40, 255, 40), "blue": (40, 40, 255)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decompose run of videos whose captions name their colour."""
    folder = tmp_path_factory.mktemp("run")
    for index, (name, colour) in enumerate(COLOURS.items()):
        tint = np.array(colour) / 255
        frames = ((frame * tint).astype(np.uint8) for frame in moving_texture(12 * 4, 96, 128, index))
        write_mp4(frames, folder / f"{name}.mp4", 12)
    return write_run(folder / "clips", [{"source": str(folder / f"{name}.mp4")} for name in COLOURS])


def built(run: str) -> Component:
    settings = VisionTransformerTraining(words=64, validation_samples=6)
    return settings.build(ModelFolder("tiny"), TrainInputs(train=[run], validation=[run]))


def test_words_of_captions_are_learned_and_only_the_transformer_changes(run: str, tmp_path: Path) -> None:
    component = built(run)
    objective, shown = component.objective, component.write_samples
    assert isinstance(objective, VisionTransformerObjective)
    assert shown is not None
    before = {name: value.clone() for name, value in objective.tokenizer.state_dict().items()}
    untrained = shown(objective, tmp_path)
    optimizer = torch.optim.AdamW([one for one in objective.parameters() if one.requires_grad], lr=3e-3)
    for _ in range(40):
        items = component.stream.take(6)
        batch = component.collate(items, [item.load() for item in items])
        sums = objective(batch.inputs, Draws(0, batch.positions))
        assert sums.keys() - {SAMPLE_LOSSES} == batch.counts.keys() == objective.weights.keys()
        torch.stack([sums[name] / batch.counts[name] for name in batch.counts]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = shown(objective, tmp_path)
    assert trained["words_found"] == 1.0 > untrained["words_found"]
    assert trained["explained_variance"] > max(untrained["explained_variance"], 0.3)
    changed = {name for name, value in objective.tokenizer.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"encoder"}
    assert {name.split(".")[1] for name in changed} == {"cls_token", "patch_embed", "blocks", "norm"}


def test_a_picture_without_a_caption_is_no_example_of_words(run: str) -> None:
    component = built(run)
    items = component.stream.take(2)
    (picture, text), (other, _) = (item.load() for item in items)
    batch = component.collate(items, [(picture, text), (other, None)])
    alone = component.collate(items[:1], [(picture, text)])
    assert batch.counts == {"words": 1.0, "pixels": 2.0}
    ours, theirs = (component.objective(one.inputs, Draws(0, one.positions))["words"] for one in (batch, alone))
    torch.testing.assert_close(ours, theirs)


def test_words_are_told_apart_whatever_their_case_and_place() -> None:
    assert torch.equal(word_buckets("A red circle.", 1024), word_buckets("circle, RED a", 1024))
    assert int(word_buckets("a red circle", 1024).sum()) == 3
    assert not word_buckets(None, 1024).any()
