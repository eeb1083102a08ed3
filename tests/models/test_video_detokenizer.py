"""The video detokenizer: which motion a frame sees, and clips of a batch that know nothing of each other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from tests.models import small_networks
from tests.models.small_networks import VIDEO_UNET, noise
from tests.parity.results import outputs_of
from videolavit.models.layers import TemporalConv
from videolavit.models.sampling import apply_guidance
from videolavit.models.vae import VAEConfig
from videolavit.models.video_detokenizer import MotionUNet, VideoDetokenizer, VideoSettings, edm_scheduler
from videolavit.models.video_detokenizer.unet import MotionContext, TemporalMotionAttention

FRAMES = 3
SETTINGS = VideoSettings(video_steps=3, decode_chunk=2)
VAE = VAEConfig(block_out_channels=(32, 32), layers_per_block=1, scaling_factor=0.2)


@pytest.fixture(scope="module")
def unet() -> MotionUNet:
    return small_networks.video_unet()


@pytest.fixture(scope="module")
def detokenizer(unet: MotionUNet) -> VideoDetokenizer:
    return VideoDetokenizer(
        small_networks.motion_encoder(), unet, small_networks.filled(VAE.build_temporal()), edm_scheduler()
    )


def keyframes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 32, 3), np.uint8)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# ---- what the U-Net looks at --------------------------------------------------------------------------------------


def test_a_frame_sees_its_own_motion(unet: MotionUNet) -> None:
    sample, context, added = noise(1, FRAMES, 10, 8, 16), noise(1, FRAMES, 256, 12), torch.ones(1, 3)
    attention = unet.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    changed = context.clone()
    changed[:, 1] += 1
    seen = []
    for one in (context, changed):
        with outputs_of(spatial=attention) as outputs:
            unet(sample, 0.5, one, added)
        seen.append(outputs["spatial"])
    apart = (seen[1] - seen[0]).abs().amax((1, 2))
    assert apart[[0, 2]].max() == 0
    assert apart[1] > 0.1


@pytest.mark.parametrize("size", [(16, 16), (8, 12), (5, 20)])
def test_a_place_sees_the_motion_there_over_time(size: tuple[int, int]) -> None:
    """Equals the library's attention to the 16 x 16 tokens copied to the places."""
    height, width = size
    attention = small_networks.filled(Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4))
    hidden, tokens = noise(2 * height * width, FRAMES, 8), noise(2, FRAMES, 256, 12, seed=1)
    context = MotionContext()
    with context.use(tokens, 2, {height * width: size}):
        got = TemporalMotionAttention(context)(attention, hidden)
    grid = tokens.transpose(2, 3).flatten(0, 1).unflatten(2, (16, 16))
    copied = F.interpolate(grid, scale_factor=(height / 16, width / 16), mode="nearest").flatten(2)
    series = copied.unflatten(0, (2, FRAMES)).permute(0, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(got, AttnProcessor2_0()(attention, hidden, series), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, FRAMES, 255, 12), (1, FRAMES + 1, 256, 12), (2, FRAMES, 256, 12), (1, 256, 12)])
def test_wrong_context(unet: MotionUNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"motion_context must be \[1 to 1, 3, 256, 12\]"):
        unet(noise(1, FRAMES, 10, 8, 16), 0.5, torch.zeros(shape), torch.ones(1, 3))


def test_rows_without_context_have_one_of_zeros(unet: MotionUNet) -> None:
    sample, context, added = noise(3, FRAMES, 10, 8, 16), noise(1, FRAMES, 256, 12), torch.ones(3, 3)
    zeros = torch.zeros(2, FRAMES, 256, 12)
    expected = unet(sample, 0.5, torch.cat([zeros, context]), added)
    torch.testing.assert_close(unet(sample, 0.5, context, added), expected, atol=1e-5, rtol=1e-4)


def test_a_sampling_does_not_keep_an_older_context(unet: MotionUNet) -> None:
    """Keys and values are kept for the same context only, and forgotten afterwards."""
    sample, added = noise(1, FRAMES, 10, 8, 16), torch.ones(1, 3)
    contexts = noise(1, FRAMES, 256, 12), noise(1, FRAMES, 256, 12, seed=1)
    expected = [unet(sample, 0.5, context, added) for context in contexts]
    assert (expected[1] - expected[0]).abs().mean() > 0.01
    with unet.sampling():
        for index in (0, 0, 1, 1, 0):
            assert unet(sample, 0.5, contexts[index], added).equal(expected[index])
    assert unet(sample, 0.5, contexts[1], added).equal(expected[1])


def test_more_frames_than_a_temporal_table_has() -> None:
    with pytest.raises(ValueError, match="9 frames of motion; this encoder has 8 positions"):
        small_networks.motion_encoder()(noise(1, 2, 9, 4, 4))


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_convolutions_over_time_are_those_of_the_library(network: str, detokenizer: VideoDetokenizer) -> None:
    """A tensor as the network gives it: frames moved behind the channels, not contiguous."""
    layers = [layer for layer in getattr(detokenizer, network).modules() if isinstance(layer, nn.Conv3d)]
    assert layers
    assert all(type(layer) is TemporalConv for layer in layers)
    x = noise(2, FRAMES, layers[0].in_channels, 5, 4).transpose(1, 2)
    expected = F.conv3d(x, layers[0].weight, layers[0].bias, padding=(1, 0, 0))
    torch.testing.assert_close(layers[0](x), expected, atol=1e-5, rtol=1e-4)


# ---- sampling -----------------------------------------------------------------------------------------------------


def test_clips_in_a_batch_are_as_alone(detokenizer: VideoDetokenizer) -> None:
    motion, pictures = noise(2, 2, FRAMES, 8, 16), keyframes(2)
    batched = detokenizer.generate(pictures, motion, generators(3, 4), SETTINGS)
    assert batched.shape == (2, FRAMES, 16, 32, 3)
    assert batched.std() > 10
    for index, seed in enumerate((3, 4)):
        one = slice(index, index + 1)
        alone = detokenizer.generate(pictures[one], motion[one], generators(seed), SETTINGS)[0]
        assert np.abs(alone.astype(int) - batched[index]).max() <= 1


def test_a_clip_that_is_left_out_changes_nothing_for_the_others(detokenizer: VideoDetokenizer) -> None:
    motion, pictures = noise(3, 2, FRAMES, 8, 16), keyframes(3)
    batched = detokenizer.generate(pictures, motion, generators(3, 4, 5), SETTINGS)
    left = detokenizer.generate(
        pictures, motion, generators(3, 4, 5), SETTINGS, lambda done, total: [0, 2] if done == 1 else None
    )
    assert left.shape == (2, FRAMES, 16, 32, 3)
    assert np.abs(left.astype(int) - batched[[0, 2]]).max() <= 1


def test_the_generator_decides(detokenizer: VideoDetokenizer) -> None:
    motion, pictures = noise(1, 2, FRAMES, 8, 16), keyframes(1)
    first, again, other = (
        detokenizer.generate(pictures, motion, generators(seed), SETTINGS) for seed in (1, 1, 2)
    )  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_motion_and_keyframe_show(detokenizer: VideoDetokenizer) -> None:
    reference, start = noise(1, 4, 8, 16), noise(1, FRAMES, 4, 8, 16, seed=1)
    motion = noise(1, 2, FRAMES, 8, 16, seed=2)
    before = detokenizer.sample(motion, reference, start, SETTINGS)
    for changed in (
        detokenizer.sample(motion.flip(2), reference, start, SETTINGS),
        detokenizer.sample(motion, reference + 1, start, SETTINGS),
    ):
        assert (changed - before).abs().mean() > 0.01


def test_steps_are_told_and_may_be_stopped(detokenizer: VideoDetokenizer) -> None:
    reports = []

    def report(done: int, total: int) -> None:
        reports.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detokenizer.generate(keyframes(1), noise(1, 2, FRAMES, 8, 16), generators(0), SETTINGS, report)
    assert reports == [(1, 3), (2, 3)]


@pytest.mark.parametrize(("height", "width"), [(18, 32), (0, 32), (16, -4), (2, 32)])
def test_sizes_that_do_not_fit(detokenizer: VideoDetokenizer, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"width and height must be multiples of 4, not {width} x {height}"):
        detokenizer.latent_size(height, width)
    assert detokenizer.latent_size(16, 32) == (8, 16)
    assert len(VIDEO_UNET.block_out_channels) == 2


def test_guidance() -> None:
    unconditional, conditional = noise(1, 5), noise(1, 5, seed=1)
    both = torch.cat([unconditional, conditional])
    torch.testing.assert_close(apply_guidance(both, 1.0), conditional)
    torch.testing.assert_close(apply_guidance(both, 0.0), unconditional)
    torch.testing.assert_close(apply_guidance(both, 3.0), conditional + 2 * (conditional - unconditional))
