"""The keyframe detokenizer: where a sampling starts, and pictures of a batch that know nothing of each other."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler

from tests.models import small_networks
from tests.models.small_networks import CONDITIONS, noise
from videolavit.models.keyframe_detokenizer import (
    Conditions,
    KeyframeDetokenizer,
    KeyframeUNetConfig,
    ddim_scheduler,
)
from videolavit.models.keyframe_detokenizer.detokenizer import Start
from videolavit.models.sampling import OnStep
from videolavit.models.vae import VAEConfig

UNET = KeyframeUNetConfig(
    block_out_channels=(32, 64),
    layers_per_block=1,
    num_heads=(2, 4),
    transformer_layers=(1, 1),
    cross_attention_dim=sum(CONDITIONS.context_dims),
    addition_time_embed_dim=4,
    pooled_dim=CONDITIONS.pooled_dim,
)

VAE = VAEConfig(block_out_channels=(32, 32), layers_per_block=1, scaling_factor=0.3)
NUM_STEPS = 6
SIZE = (16, 24)
LATENT = (4, 8, 12)


def ancestral() -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler.from_config(ddim_scheduler().config)


@pytest.fixture(scope="module", params=[ddim_scheduler, ancestral], ids=["ddim", "ancestral"])
def detokenizer(request: pytest.FixtureRequest) -> KeyframeDetokenizer:
    return detokenizer_with(request.param())


def detokenizer_with(scheduler: Any) -> KeyframeDetokenizer:
    unet, vae = small_networks.filled(UNET.build()), small_networks.filled(VAE.build())
    return KeyframeDetokenizer(small_networks.condition_decoder(), unet, vae, scheduler)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def conditions(detokenizer: KeyframeDetokenizer) -> Conditions:
    return detokenizer.decode_codes([torch.arange(7), torch.tensor([4, 2])])


def picked(both: Conditions, index: int) -> Conditions:
    return Conditions(both.context[index : index + 1], both.pooled[index : index + 1])


def test_pictures_in_a_batch_are_as_alone(detokenizer: KeyframeDetokenizer) -> None:
    both = conditions(detokenizer)

    def make(condition: Conditions, *seeds: int) -> torch.Tensor:
        own = generators(*seeds)
        return detokenizer.sample(condition, detokenizer.noise(*SIZE, NUM_STEPS, own), NUM_STEPS, 3.0, own)

    batched = make(both, 8, 9)
    assert batched.shape == (2, *LATENT)
    for index, seed in enumerate((8, 9)):
        alone = make(picked(both, index), seed)
        torch.testing.assert_close(alone[0], batched[index], atol=1e-3, rtol=1e-3)
    assert (make(both, 8, 10)[1] - batched[1]).abs().mean() > 0.1
    pictures = detokenizer.decode(batched)
    assert pictures.shape == (2, *SIZE, 3)
    assert pictures.dtype == np.uint8


def test_a_picture_that_is_left_out_changes_nothing_for_the_others(detokenizer: KeyframeDetokenizer) -> None:
    both = conditions(detokenizer)

    def make(on_step: OnStep | None) -> torch.Tensor:
        own = generators(8, 9)
        return detokenizer.sample(both, detokenizer.noise(*SIZE, NUM_STEPS, own), NUM_STEPS, 3.0, own, on_step)

    left = make(lambda done, total: [1] if done == 1 else None)
    assert left.shape == (1, *LATENT)
    torch.testing.assert_close(left[0], make(None)[1], atol=1e-3, rtol=1e-3)


def test_noised_start_of_an_ancestral_scheduler() -> None:
    """The signal stays at full scale, unlike in the published code, which multiplies it too."""
    detokenizer = detokenizer_with(ancestral())
    latents, drawn = noise(2, *LATENT), noise(2, *LATENT, seed=1)
    start = detokenizer.noised_start(latents, drawn, 0.5, NUM_STEPS)
    scheduler = ancestral()
    scheduler.set_timesteps(NUM_STEPS)
    assert start.step == 3
    assert 0.1 < scheduler.sigmas[3] < scheduler.sigmas[0]
    torch.testing.assert_close(start.latents, latents + scheduler.sigmas[3] * drawn)


def test_noised_start_of_ddim() -> None:
    detokenizer = detokenizer_with(ddim_scheduler())
    latents, drawn = noise(2, *LATENT), noise(2, *LATENT, seed=1)
    start = detokenizer.noised_start(latents, drawn, 0.85, 20)
    scheduler = ddim_scheduler()
    scheduler.set_timesteps(20)
    share = scheduler.alphas_cumprod[scheduler.timesteps[17]]
    assert start.step == 17
    torch.testing.assert_close(start.latents, share.sqrt() * latents + (1 - share).sqrt() * drawn)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 85])
def test_rates_that_leave_nothing_or_all(detokenizer: KeyframeDetokenizer, rate: float) -> None:
    latents = noise(2, *LATENT)
    with pytest.raises(ValueError, match="rate must be between 0 and 1"):
        detokenizer.noised_start(latents, latents, rate, NUM_STEPS)
    with pytest.raises(ValueError, match="rate must be between 0 and 1"):
        detokenizer.inverted_start(latents, conditions(detokenizer), rate, NUM_STEPS)


def test_inversion_is_undone_by_sampling() -> None:
    """Deterministic steps towards noise and back end near the start: nearer, the more steps there are."""
    detokenizer = detokenizer_with(ddim_scheduler())
    latents, condition = noise(2, *LATENT), conditions(detokenizer)

    def apart(steps: int) -> float:
        start = detokenizer.inverted_start(latents, condition, 0.6, steps)
        assert (start.latents - latents).abs().mean() > 0.2
        back = detokenizer.sample(condition, start, steps, guidance=1.0)
        return float((back - latents).norm() / latents.norm())

    coarse, fine = apart(20), apart(120)
    assert fine < 0.05
    assert fine < coarse / 2


def test_a_start_keeps_to_its_picture(detokenizer: KeyframeDetokenizer) -> None:
    """The later in the schedule a sampling starts, the nearer it ends to the picture that it starts from."""
    latents, drawn = noise(2, *LATENT), noise(2, *LATENT, seed=1)
    condition = conditions(detokenizer)
    apart = []
    for rate in (0.5, 0.9):
        start = detokenizer.noised_start(latents, drawn, rate, 20)
        end = detokenizer.sample(condition, start, 20, 1.0, generators(1, 2))
        apart.append(float((end - latents).norm() / latents.norm()))
    assert apart[1] < apart[0]


def test_schedulers_are_not_shared(detokenizer: KeyframeDetokenizer) -> None:
    """Samplings of different lengths in turns, as requests make them."""
    condition = conditions(detokenizer)
    start = detokenizer.noise(*SIZE, NUM_STEPS, generators(1, 2))
    first = detokenizer.sample(condition, start, NUM_STEPS, 2.0, generators(1, 2))
    steps = []

    def interrupt(done: int, total: int) -> None:
        other = detokenizer.noise(*SIZE, 3, generators(3, 4))
        detokenizer.sample(condition, other, 3, 2.0, generators(3, 4))
        steps.append(done)

    again = detokenizer.sample(condition, start, NUM_STEPS, 2.0, generators(1, 2), interrupt)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert again.equal(first)


def test_encoded_pictures_are_resized(detokenizer: KeyframeDetokenizer) -> None:
    picture = np.full((1, 5, 9, 3), 100, np.uint8)
    latents = detokenizer.encode(picture, *SIZE)
    assert latents.shape == (1, *LATENT)
    torch.testing.assert_close(latents, detokenizer.encode(np.full((1, *SIZE, 3), 100, np.uint8), *SIZE))


@pytest.mark.parametrize(("height", "width"), [(18, 24), (16, 0)])
def test_sizes_that_do_not_fit(detokenizer: KeyframeDetokenizer, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"width and height must be multiples of 4, not {width} x {height}"):
        detokenizer.noise(height, width, NUM_STEPS, generators(0))


def test_the_step_of_a_start_is_where_sampling_goes_on() -> None:
    detokenizer = detokenizer_with(ddim_scheduler())
    reports = []
    start = Start(noise(2, *LATENT), 4)
    detokenizer.sample(
        conditions(detokenizer), start, NUM_STEPS, 1.0, on_step=lambda done, total: reports.append((done, total))
    )
    assert reports == [(1, 2), (2, 2)]
    assert isinstance(detokenizer.scheduler, DDIMScheduler)
