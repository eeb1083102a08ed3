"""Training of both tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import moving_texture
from tests.models import small_networks
from tests.training.test_sources import write_run
from videolavit.media import write_mp4
from videolavit.models.codebook import CodebookSettings
from videolavit.models.folder import ModelFolder
from videolavit.models.keyframe_detokenizer import ConditionDecoder
from videolavit.models.motion_tokenizer import MotionTokenizer
from videolavit.models.motion_tokenizer.objective import MotionTokenizerObjective
from videolavit.models.objective import SAMPLE_LOSSES, Draws, Objective
from videolavit.models.visual_tokenizer import VisualTokenizer, normalize_images
from videolavit.models.visual_tokenizer.objective import VisualTokenizerObjective, feature_distance
from videolavit.training.component import Component
from videolavit.training.components import visual_tokenizer
from videolavit.training.components.motion_tokenizer import MotionTokenizerTraining
from videolavit.training.components.visual_tokenizer import VisualTokenizerTraining
from videolavit.training.settings import TrainInputs

Tensors = dict[str, torch.Tensor]


def motion_objective(quantize_from: int = 2) -> MotionTokenizerObjective:
    torch.manual_seed(0)
    tokenizer = MotionTokenizer(small_networks.MOTION)
    return MotionTokenizerObjective(tokenizer, CodebookSettings(quantize_from=quantize_from), 0.25)


def visual_objective(quantize_from: int = 2) -> VisualTokenizerObjective:
    torch.manual_seed(0)
    tokenizer, decoder = VisualTokenizer(small_networks.VISUAL), ConditionDecoder(small_networks.CONDITIONS)
    settings = CodebookSettings(quantize_from=quantize_from)
    return VisualTokenizerObjective(tokenizer, decoder, settings, rho=1 / 3, keep_weight=2.0, commitment=0.25)


def motion_inputs(count: int = 4) -> Tensors:
    config = small_networks.MOTION
    motion = small_networks.noise(count, 2, config.num_frames, config.grid_height, config.grid_width)
    return {"motion": motion, "num_frames": torch.tensor([8, 3, 5, 8][:count])}


def visual_inputs(count: int = 4) -> Tensors:
    size = small_networks.VISUAL.image_size
    return {"images": small_networks.noise(count, size, size, 3).mul(60).add(128).clamp(0, 255).to(torch.uint8)}


def loss_of(objective: Objective, inputs: Tensors, positions: range) -> torch.Tensor:
    sums = objective(inputs, Draws(0, positions))
    return torch.stack([weight * sums[name] for name, weight in objective.weights.items()]).sum()


def learn(objective: Objective, inputs: Tensors, steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.AdamW([one for one in objective.parameters() if one.requires_grad], lr)
    losses = []
    count = len(next(iter(inputs.values())))
    for step in range(steps):
        objective.begin_step(step)
        loss = loss_of(objective, inputs, range(step * count, (step + 1) * count)) / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(lambda value: value)
        losses.append(float(loss.detach()))
    return losses


def gradients(objective: Objective) -> Tensors:
    return {name: one.grad.clone() for name, one in objective.named_parameters() if one.grad is not None}


def gradient_at(module: nn.Module) -> list[torch.Tensor]:
    """Will hold the gradient of what the module returns, once it was computed."""
    seen: list[torch.Tensor] = []
    module.register_forward_hook(lambda module, given, result: result.register_hook(seen.append) and None)
    return seen


@pytest.mark.parametrize("quantize_from", [0, 1000])
@pytest.mark.parametrize(("make", "inputs"), [(motion_objective, motion_inputs), (visual_objective, visual_inputs)])
def test_micro_batches_add_up(make: Any, inputs: Any, quantize_from: int) -> None:
    """The sums of a batch, their gradient and what the codebook learns are those of its halves."""
    whole, halves, given = make(quantize_from), make(quantize_from), inputs()
    loss_of(whole, given, range(4)).backward()
    for part in (range(2), range(2, 4)):
        loss_of(halves, {name: value[part.start : part.stop] for name, value in given.items()}, part).backward()
    torch.testing.assert_close(gradients(halves), gradients(whole), atol=1e-5, rtol=1e-3)
    for objective in (whole, halves):
        objective.after_step(lambda value: value)
    torch.testing.assert_close(halves.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("make", "inputs"), [(motion_objective, motion_inputs), (visual_objective, visual_inputs)])
def test_what_is_trained_gets_a_gradient(make: Any, inputs: Any) -> None:
    objective = make(0)
    loss_of(objective, inputs(), range(4)).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        if parameter.requires_grad:
            assert parameter.grad.any(), name


def test_padding_of_a_short_clip_is_no_error() -> None:
    """The loss has no gradient to frames that the clip does not have."""
    objective, inputs = motion_objective(), motion_inputs()
    gradient = gradient_at(objective.tokenizer.decode_task_layer)
    loss_of(objective, inputs, range(4)).backward()
    counted = gradient[0].ne(0).any(-1).flatten(2).any(-1)
    assert torch.equal(counted, torch.arange(8) < inputs["num_frames"][:, None])


def test_the_loss_is_that_of_the_tokenizer_itself() -> None:
    """Metrics of the quantizing objective equal those of encode and decode."""
    objective, inputs = motion_objective(0), motion_inputs()
    objective.eval()
    with torch.no_grad():
        sums = objective(inputs, Draws(0, range(4)))
        decoded = objective.tokenizer.decode(objective.tokenizer.encode(inputs["motion"]))
    real = (torch.arange(8) < inputs["num_frames"][:, None])[:, None, :, None, None]
    torch.testing.assert_close(sums["reconstruction"], ((decoded - inputs["motion"]).square() * real).sum())


def test_the_visual_loss_is_that_of_the_tokenizer_and_the_decoder() -> None:
    objective, inputs = visual_objective(0), visual_inputs()
    objective.eval()
    images = normalize_images(inputs["images"])
    with torch.no_grad():
        sums = objective(inputs, Draws(0, range(4)))
        codes = objective.tokenizer.encode(images)
        objective.decoder.codebook = objective.tokenizer.quantize.embedding.weight
        rebuilt = objective.decoder.features(codes)
        likeness = F.cosine_similarity(rebuilt, objective.tokenizer.patch_features(images), dim=-1)
    kept = torch.tensor([len(one) for one in codes]) / small_networks.VISUAL.num_patches
    assert kept.min() > 0
    assert kept.max() < 1
    torch.testing.assert_close(sums["reconstruction"], (1 - likeness.mean(1)).sum())
    torch.testing.assert_close(sums["keep_rate"], (kept - 1 / 3).square().sum())
    torch.testing.assert_close(sums["kept"], kept.sum())


def test_without_their_centre_features_are_compared_by_what_sets_pictures_apart() -> None:
    centre, own = 10 * small_networks.noise(1, 6, 8)[0], small_networks.noise(2, 6, 8)
    own[:, 2] *= 5
    almost = own.clone()
    almost[:, 2] = 0  # the patch that matters most
    plain, centred = (feature_distance(centre + almost, centre + own, one) for one in (None, centre))
    assert plain.max() < 0.2
    assert centred.min() > 0.3
    torch.testing.assert_close(feature_distance(centre + 3 * own, centre + own, centre), torch.zeros(2))


def test_pictures_that_are_rebuilt_as_the_mean_have_bounded_gradients() -> None:
    """The gradient of a cosine grows without bound as a vector gets short, and would drown those of all others."""
    centre, own, other = torch.randn(3, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    steepest = []
    for share in (0.5, 0.1, 1e-6):
        rebuilt = (centre + share * other).requires_grad_(True)
        feature_distance(rebuilt, centre + own, centre[0]).sum().backward()
        assert rebuilt.grad is not None
        steepest.append(float(rebuilt.grad.norm() * own.norm()))
    assert max(steepest) < 10
    assert steepest[2] > 0


def test_reconstruction_alone_teaches_the_selector_which_patches_matter() -> None:
    """The gradient reaches the choice of kept and of dropped patches; the last of these would be seen by no other."""
    objective, inputs = visual_objective(), visual_inputs()
    gradient = gradient_at(objective.tokenizer.token_predictor)
    objective(inputs, Draws(0, range(4)))["reconstruction"].backward()
    assert gradient[0][:, :-1, 0].ne(0).all()


@pytest.mark.parametrize("sure", [-200.0, 200.0])
def test_a_selector_that_is_sure_of_all_patches_still_learns_their_share(sure: float) -> None:
    """Else it would keep all patches of some pictures and none of others for good."""
    objective, inputs = visual_objective(0), visual_inputs()
    last = objective.tokenizer.token_predictor.out_conv[-1]
    with torch.no_grad():
        last.bias.copy_(torch.tensor([sure, -sure]))
    sums = objective(inputs, Draws(0, range(4)))
    assert sums["kept"] == (4 if sure > 0 else 0)
    sums["keep_rate"].backward()
    assert last.bias.grad[0] * sure > 0.01  # a step against the gradient brings the share nearer to `rho`


def test_the_vit_and_the_projections_behind_the_features_stay() -> None:
    objective, inputs = visual_objective(), visual_inputs()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    learn(objective, inputs, 3, 1e-2)
    after = objective.state_dict()
    fixed = ("tokenizer.encoder.", "decoder.unet_")
    for name, value in before.items():
        if name.startswith(fixed):
            assert torch.equal(value, after[name]), name
    assert not torch.equal(before["tokenizer.quantize.embedding.weight"], after["tokenizer.quantize.embedding.weight"])


def test_both_objectives_learn_through_their_codebooks() -> None:
    """On four samples of which each must be distinguished from the others."""
    motion = motion_objective(10)
    losses = learn(motion, motion_inputs(), 40, 2e-3)
    assert losses[-1] < 0.97 * losses[0], losses
    assert motion.statistics()["codebook_perplexity"] > 2
    visual = visual_objective(10)
    losses = learn(visual, visual_inputs(), 40, 3e-3)
    assert losses[-1] < 0.85 * losses[0], losses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decompose run of two videos: six clips, of which one is short."""
    folder = tmp_path_factory.mktemp("run")
    files = [folder / f"video{index}.mp4" for index in range(2)]
    for index, file in enumerate(files):
        write_mp4(moving_texture(12 * (9 + index), 96, 128, index), file, 12)
    return write_run(folder / "clips", [{"source": str(file)} for file in files])


@pytest.mark.parametrize("kind", [MotionTokenizerTraining, VisualTokenizerTraining])
def test_a_component_trains_and_shows(kind: Any, run: str, tmp_path: Path) -> None:
    settings = kind(codebook=CodebookSettings(quantize_from=1), validation_samples=3)
    component: Component = settings.build(ModelFolder("tiny"), TrainInputs(train=[run], validation=[run]))
    items = component.stream.take(2)
    batch = component.collate(items, [item.load() for item in items])
    for _ in range(2):
        sums = component.objective(batch.inputs, Draws(0, batch.positions))
        assert set(component.objective.weights) <= set(sums) - {SAMPLE_LOSSES} == set(batch.counts)
        torch.stack([sums[name] for name in component.objective.weights]).sum().backward()
        component.objective.after_step(lambda value: value)
    assert component.objective.statistics()["codebook_usage"] > 0
    assert component.write_samples is not None
    component.objective.eval()
    with torch.no_grad():
        shown = component.write_samples(component.objective, tmp_path)
    assert np.isfinite(list(shown.values())).all()


def test_the_centre_is_that_of_the_first_pictures_and_the_order_stays(run: str) -> None:
    inputs = TrainInputs(train=[run])
    plain, centred = (
        visual_tokenizer.VisualTokenizerTraining(centred=yes).build(ModelFolder("tiny"), inputs)
        for yes in (False, True)
    )
    assert isinstance(plain.objective, VisualTokenizerObjective)
    assert plain.objective.centre is None
    assert isinstance(centred.objective, VisualTokenizerObjective)
    assert centred.objective.centre is not None
    first, again = (one.stream.take(visual_tokenizer.CENTRE_SAMPLES) for one in (plain, centred))
    assert [item.position for item in first] == [item.position for item in again]
    pictures = torch.from_numpy(np.stack([item.load() for item in first]))
    features = centred.objective.tokenizer.patch_features(normalize_images(pictures))
    torch.testing.assert_close(centred.objective.centre, features.mean(0), atol=1e-4, rtol=1e-4)
