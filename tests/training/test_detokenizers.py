"""Training of the VAEs and of both detokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.conftest import moving_texture
from tests.training.test_sources import write_run
from videolavit.media import write_mp4
from videolavit.models.folder import ModelFolder
from videolavit.models.keyframe_detokenizer.objective import KeyframeObjective, PictureTargets
from videolavit.models.network import ModelError
from videolavit.models.objective import Draws, Objective
from videolavit.models.presets import load_preset
from videolavit.models.sampling import prepared_scheduler, to_signed
from videolavit.models.vae import VAEConfig
from videolavit.models.vae.objective import VAEObjective
from videolavit.models.vae.temporal import initialize_from_image_vae
from videolavit.models.video_detokenizer import edm_scheduler
from videolavit.models.video_detokenizer.objective import Preconditioning, VideoObjective, encode_frames
from videolavit.training.component import Component
from videolavit.training.components import keyframe_detokenizer, vae, video_detokenizer
from videolavit.training.data import DataError
from videolavit.training.settings import TrainInputs

TINY = "tiny"
FACTOR = 1 << (len(load_preset(TINY).video_detokenizer.vae.block_out_channels) - 1)
"""Pixels of a latent's side."""

Tensors = dict[str, torch.Tensor]


def loss_of(objective: Objective, inputs: Tensors, positions: list[int]) -> torch.Tensor:
    sums = objective(inputs, Draws(0, positions))
    return torch.stack([weight * sums[name] for name, weight in objective.weights.items()]).sum()


def one_of(inputs: Tensors, index: int) -> Tensors:
    return {name: value[index : index + 1] for name, value in inputs.items()}


def train(component: Component, steps: int, batch: int, lr: float = 2e-3) -> list[float]:
    """Losses of a plain loop."""
    objective = component.objective
    optimizer = torch.optim.AdamW([value for value in objective.parameters() if value.requires_grad], lr)
    losses = []
    for step in range(steps):
        items = component.stream.take(batch)
        made = component.collate(items, [item.load() for item in items])
        objective.begin_step(step)
        loss = loss_of(objective, made.inputs, made.positions) / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(lambda value: value)
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decompose run of two videos, four clips, of which the last is short."""
    folder = tmp_path_factory.mktemp("videos")
    sources = []
    for index, seconds in enumerate((4, 10)):
        file = folder / f"{index}.mp4"
        write_mp4(moving_texture(6 * seconds, 32, 48, index), file, 6)
        sources.append({"source": str(file)})
    return write_run(folder / "run", sources)


@pytest.fixture(scope="module")
def inputs(run: str) -> TrainInputs:
    return TrainInputs(train=[run], validation=[run])


# ---- the VAEs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temporal", [False, True])
def test_a_vae_learns_and_measures_its_latents(temporal: bool) -> None:
    torch.manual_seed(0)
    config = VAEConfig(block_out_channels=(32, 32), layers_per_block=1)
    network: Any = config.build_temporal() if temporal else config.build()
    objective = VAEObjective(network, "keyframe_detokenizer/vae", {"pixels": 1.0, "edges": 0.5, "kl": 1e-4})
    optimizer = torch.optim.AdamW(objective.parameters(), 5e-3)
    frames = np.stack(list(moving_texture(8, 16, 16, 0)))
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    inputs = {"pictures": pictures.unflatten(0, (2, 4)) if temporal else pictures}
    count = len(inputs["pictures"])
    errors = []
    for step in range(12):
        positions = list(range(step * count, (step + 1) * count))
        sums = objective(inputs, Draws(0, positions))
        loss = torch.stack([weight * sums[name] for name, weight in objective.weights.items()]).sum() / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(lambda value: value)
        errors.append(float(sums["pixels"].detach()) / count)
    assert errors[-1] < 0.7 * errors[0]
    trained: Any
    (trained,) = objective.parts().values()
    latents = network.encode(to_signed(frames)).latent_dist.mode() * trained.config.scaling_factor
    assert 0.7 < float(latents.detach().std()) < 1.4


def test_a_skipped_step_leaves_no_trace_in_the_scale_of_latents() -> None:
    network: Any = VAEConfig(block_out_channels=(32, 32), layers_per_block=1).build()
    objective = VAEObjective(network, "keyframe_detokenizer/vae", {"pixels": 1.0, "edges": 0.5, "kl": 1e-4})
    pictures = torch.from_numpy(np.stack(list(moving_texture(2, 16, 16, 0)))).permute(0, 3, 1, 2)
    scales = []
    for broken in (False, True):
        objective.moments.zero_()
        if broken:
            objective({"pictures": torch.full_like(pictures, float("nan"), dtype=torch.float32)}, Draws(0, [0, 1]))
            objective.drop_step()
        objective({"pictures": pictures}, Draws(0, [0, 1]))
        objective.after_step(lambda value: value)
        (trained,) = objective.parts().values()
        scales.append(trained.config.scaling_factor)  # type: ignore[union-attr]
    assert scales[0] == scales[1] > 0


def test_a_video_vae_starts_as_that_of_pictures() -> None:
    """Frame by frame it makes the same, and only then learns from neighbours."""
    torch.manual_seed(0)
    config = VAEConfig(block_out_channels=(32, 64), layers_per_block=2)
    pictures, video = config.build(), config.build_temporal()
    torch.nn.init.zeros_(
        pictures.post_quant_conv.bias
    )  # at the edges, padding comes before it here and behind it there
    initialize_from_image_vae(video, pictures)
    frames = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        latents = pictures.encode(frames).latent_dist.mode()
        torch.testing.assert_close(video.encode(frames).latent_dist.mode(), latents)
        decoded = video.decode(latents, num_frames=3).sample
        torch.testing.assert_close(decoded, pictures.decode(latents).sample, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=r"objective\.start=model"):
        initialize_from_image_vae(video, VAEConfig(block_out_channels=(32, 32), layers_per_block=2).build())


def test_a_picture_without_motion_becomes_a_sequence() -> None:
    picture = next(moving_texture(1, 40, 60, 0))
    frames = vae.pan_window(picture, (8, 15, 22), (0.0, 0.0, 1.0, 1.0))
    assert frames.shape == (8, 15, 22, 3)
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize(
    ("part", "sequences"),
    [
        ("keyframe_detokenizer/vae", "clips"),
        ("video_detokenizer/vae", "clips"),
        ("video_detokenizer/vae", "pictures"),
    ],
)
def test_the_vae_component_trains(part: Any, sequences: Any, inputs: TrainInputs, tmp_path: Path) -> None:
    settings = vae.VAETraining(part=part, sequences=sequences, height=16, width=16, frames=2, show_samples=1)
    component = settings.build(ModelFolder(TINY), inputs)
    losses = train(component, 4, 2)
    assert np.isfinite(losses).all()
    assert list(component.objective.parts()) == [part]
    assert component.write_samples is not None
    with torch.no_grad():
        measured = component.write_samples(component.objective, tmp_path)
    assert np.isfinite(measured["psnr"])
    assert [file.suffix for file in tmp_path.iterdir()] == [".mp4" if part.startswith("video") else ".png"]


# ---- keyframes ----------------------------------------------------------------------------------------------------


def made_keyframe_objective(drop: float = 0.0, steps: int = 0) -> KeyframeObjective:
    model = ModelFolder(TINY)
    parts = {name: model.load(f"keyframe_detokenizer/{name}") for name in ("conditions", "unet", "scheduler", "vae")}
    return KeyframeObjective(
        PictureTargets(model.load("visual_tokenizer"), parts["vae"]),
        parts["conditions"],
        parts["unet"],
        parts["scheduler"],
        pixels_per_latent=FACTOR,
        condition_steps=steps,
        feature_weight=1.0,
        drop_conditions=drop,
    )


def pictures(count: int) -> Tensors:
    rng = np.random.default_rng(0)
    sides = ModelFolder(TINY).config("visual_tokenizer").image_size
    images = rng.integers(0, 255, (count, sides, sides, 3), np.uint8)
    return {"images": torch.from_numpy(images), "pictures": torch.from_numpy(images[:, :32, :48].copy())}


def test_a_keyframes_loss_depends_on_its_position_only() -> None:
    objective = made_keyframe_objective(drop=0.5)
    given = pictures(3)
    alone = [float(loss_of(objective, one_of(given, index), [index])) for index in range(3)]
    assert float(loss_of(objective, given, [0, 1, 2])) == pytest.approx(sum(alone), rel=1e-4)
    computed = objective.targets(**given)
    assert float(loss_of(objective, computed, [0, 1, 2])) == pytest.approx(sum(alone), rel=1e-4)


def test_the_first_stage_trains_the_conditions_only() -> None:
    objective = made_keyframe_objective(steps=10)
    objective.begin_step(9)
    loss_of(objective, pictures(1), [0]).backward()
    assert objective.conditions.query_embed.grad is not None
    assert all(value.grad is None for value in objective.unet.parameters())
    objective.begin_step(10)
    loss_of(objective, pictures(1), [0]).backward()
    assert all(value.grad is not None for value in objective.unet.parameters())
    assert objective.conditions.unet_proj_1.weight.grad is not None


def test_dropped_conditions_are_the_samplers_zeros() -> None:
    """The loss without conditions is that of a decoder that gives zeros."""
    objective, blind = made_keyframe_objective(drop=1.0 - 1e-9), made_keyframe_objective()
    for module in (blind.conditions.unet_proj_1, blind.conditions.unet_proj_2, blind.conditions.unet_attnpool.c_proj):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    given = pictures(2)
    assert float(loss_of(objective, given, [0, 1])) == pytest.approx(float(loss_of(blind, given, [0, 1])), rel=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_the_keyframe_component_trains(cached: bool, inputs: TrainInputs, tmp_path: Path) -> None:
    settings = keyframe_detokenizer.KeyframeDetokenizerTraining(
        height=32,
        width=32,
        condition_steps=1,
        cache=str(tmp_path / "cache") if cached else None,
        show_samples=1,
        show_steps=2,
    )
    component = settings.build(ModelFolder(TINY), inputs)
    assert np.isfinite(train(component, 3, 2)).all()
    assert component.write_samples is not None
    assert np.isfinite(component.write_samples(component.objective, tmp_path / "shown")["psnr"])
    assert (tmp_path / "shown" / "00.png").exists()
    if cached:
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4


def test_a_size_that_does_not_fit_is_refused(inputs: TrainInputs) -> None:
    with pytest.raises(DataError, match=r"multiples of \d+.*objective\.width"):
        keyframe_detokenizer.KeyframeDetokenizerTraining(height=30, width=32).build(ModelFolder(TINY), inputs)


# ---- videos -------------------------------------------------------------------------------------------------------


def made_video_objective(drop: float = 0.0, tokens: float = 0.0) -> VideoObjective:
    model = ModelFolder(TINY)
    motion_encoder, unet, network, scheduler = (
        model.load(f"video_detokenizer/{name}") for name in ("motion_encoder", "unet", "vae", "scheduler")
    )
    tokenizer = model.load("motion_tokenizer") if tokens else None
    return VideoObjective(
        motion_encoder,
        unet,
        network,
        tokenizer,
        scheduler,
        log_sigma=(1.0, 1.2),
        drop_conditions=drop,
        token_share=tokens,
    )


def clips(count: int, time: int = 4) -> Tensors:
    rng = np.random.default_rng(0)
    return {
        "frames": torch.from_numpy(rng.integers(0, 255, (count, time, 16, 32, 3), np.uint8)),
        "keyframes": torch.from_numpy(rng.integers(0, 255, (count, 16, 32, 3), np.uint8)),
        "motion": torch.from_numpy(rng.normal(size=(count, 2, time, 16 // FACTOR, 32 // FACTOR)).astype(np.float32)),
        "num_frames": torch.full((count,), time),
    }


def test_preconditioning_is_the_schedulers() -> None:
    """The denoised sample equals the one in a step of the scheduler, at every noise level that sampling visits."""
    scheduler = prepared_scheduler(edm_scheduler(), 25, torch.device("cpu"))
    torch.manual_seed(0)
    for index, timestep in enumerate(scheduler.timesteps):
        level = Preconditioning(scheduler.sigmas[index])
        noisy, predicted = torch.randn(2, 3) * level.sigma, torch.randn(2, 3)
        torch.testing.assert_close(level.timestep, timestep, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(level.scale * noisy, scheduler.scale_model_input(noisy, timestep))
        denoised = scheduler.step(predicted, timestep, noisy).pred_original_sample
        torch.testing.assert_close(level.skip * noisy + level.out * predicted, denoised, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(level.weight, 1 / level.out**2)


def test_a_perfect_network_samples_the_clean_latents() -> None:
    torch.manual_seed(0)
    clean = torch.randn(2, 4, 3, 3)
    scheduler = prepared_scheduler(edm_scheduler(), 25, torch.device("cpu"))
    latents = torch.randn_like(clean) * scheduler.init_noise_sigma
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        level = Preconditioning(sigma)
        scheduler.scale_model_input(latents, timestep)
        prediction = (clean - level.skip * latents) / level.out
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    torch.testing.assert_close(latents, clean, atol=0.01, rtol=0)


def test_a_context_of_zeros_is_the_samplers_unconditional_half() -> None:
    objective = made_video_objective()
    torch.manual_seed(0)
    sample, context = torch.randn(2, 3, 10, 4, 4), torch.randn(1, 3, 256, 32)
    added = torch.zeros(2, 3)
    with torch.no_grad():
        fewer = objective.unet(sample, 0.3, context, added)
        zeros = objective.unet(sample, 0.3, torch.cat([torch.zeros_like(context), context]), added)
    torch.testing.assert_close(zeros, fewer)


def test_a_clips_loss_depends_on_its_position_only() -> None:
    objective = made_video_objective(drop=0.5)
    given = clips(3)
    alone = [float(loss_of(objective, one_of(given, index), [index])) for index in range(3)]
    assert float(loss_of(objective, given, [0, 1, 2])) == pytest.approx(sum(alone), rel=1e-4)
    latents = {name: value for name, value in given.items() if name != "frames"}
    latents["latents"] = encode_frames(objective.vae, given["frames"])
    assert float(loss_of(objective, latents, [0, 1, 2])) == pytest.approx(sum(alone), rel=1e-4)


def test_dropped_conditions_hide_keyframe_and_motion() -> None:
    objective = made_video_objective(drop=1.0 - 1e-9)
    given = clips(1)
    other = given | {"keyframes": 255 - given["keyframes"], "motion": -given["motion"]}
    assert float(loss_of(objective, given, [0])) == float(loss_of(objective, other, [0]))
    seeing = made_video_objective()
    assert float(loss_of(seeing, given, [0])) != float(loss_of(seeing, other, [0]))


def test_padding_of_a_short_clip_is_no_part_of_the_loss() -> None:
    """Padding frames are inputs without a loss: no gradient comes from their targets."""
    objective = made_video_objective()
    given = clips(1) | {"num_frames": torch.tensor([2])}
    given["latents"] = encode_frames(objective.vae, given.pop("frames")).requires_grad_(True)
    errors: list[torch.Tensor] = []
    objective.unet.register_forward_hook(lambda module, args, output: errors.append(output))
    loss = loss_of(objective, given, [0])
    (gradient,) = torch.autograd.grad(loss, errors[0])
    assert gradient[:, :2].abs().sum() > 0
    assert gradient[:, 2:].abs().sum() == 0


def test_motion_of_codes_is_what_generation_gives() -> None:
    objective = made_video_objective(tokens=1.0)
    assert objective.tokenizer is not None
    config = objective.tokenizer.config
    torch.manual_seed(0)
    given = clips(2, config.num_frames)
    given["grid"] = torch.randn(2, 2, config.num_frames, config.grid_height, config.grid_width)
    motion = objective.motion_input(given, Draws(0, [0, 1]))
    expected = objective.tokenizer.decode_to(objective.tokenizer.encode(given["grid"]), 16 // FACTOR, 32 // FACTOR)
    torch.testing.assert_close(motion, expected)


def test_gradients_survive_recomputation() -> None:
    """Blocks that run again in the backward pass see the same motion tokens."""
    given = clips(2)

    def gradients(recompute: bool) -> list[torch.Tensor]:
        objective = made_video_objective()
        for unit in objective.units() if recompute else []:
            unit.forward = _again(unit.forward)
        loss_of(objective, given, [0, 1]).backward()
        return [value.grad for value in objective.parameters() if value.grad is not None]

    for kept, again in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(kept, again)


def _again(forward: Any) -> Any:
    return lambda *args, **options: checkpoint(forward, *args, use_reentrant=False, **options)


def test_the_video_component_trains_in_stages(inputs: TrainInputs, tmp_path: Path) -> None:
    stages = (
        video_detokenizer.ResolutionStage(from_sample=0, height=16, width=16),
        video_detokenizer.ResolutionStage(from_sample=4, height=16, width=32),
    )
    settings = video_detokenizer.VideoDetokenizerTraining(
        stages=stages,
        token_share=0.5,
        cache=str(tmp_path / "cache"),
        show_samples=1,
        show=video_detokenizer.VideoSettings(video_steps=2),
    )
    component = settings.build(ModelFolder(TINY), inputs)
    widths = [item.load()["motion"].shape[-1] for item in component.stream.take(8)]
    assert widths == [16 // FACTOR] * 4 + [32 // FACTOR] * 4
    component.stream.seek({"position": 0})
    assert np.isfinite(train(component, 4, 2)).all()
    assert component.write_samples is not None
    assert np.isfinite(component.write_samples(component.objective, tmp_path / "shown")["psnr"])
    assert (tmp_path / "shown" / "00.mp4").exists()


def test_stages_that_do_not_begin_at_the_start_are_refused(inputs: TrainInputs) -> None:
    stages = (video_detokenizer.ResolutionStage(from_sample=4, height=16, width=16),)
    with pytest.raises(DataError, match="start at sample 0"):
        video_detokenizer.VideoDetokenizerTraining(stages=stages).build(ModelFolder(TINY), inputs)
