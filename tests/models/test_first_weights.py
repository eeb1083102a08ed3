"""Networks from scratch: what they are to learn from must not drown in what they begin with."""

import torch

from videolavit.models.folder import ModelFolder
from videolavit.models.video_detokenizer.unet import IN_CHANNELS, MOTION_CHANNELS
from videolavit.models.visual_tokenizer import normalize_images

TINY = ModelFolder("tiny")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def share_of(change: torch.Tensor, whole: torch.Tensor) -> float:
    return float(change.square().mean().sqrt() / whole.square().mean().sqrt())


@torch.no_grad()
def test_features_of_the_vit_tell_their_place_and_their_picture() -> None:
    tokenizer = TINY.load("visual_tokenizer")
    size = tokenizer.config.image_size
    pictures = noise(16, size, size, 3).mul(60).add(128).clamp(0, 255).to(torch.uint8)
    features = tokenizer.patch_features(normalize_images(pictures))
    features = features - features.mean((0, 1))
    assert share_of(features.mean(0), features) > 0.3  # a sixteenth of the noise is left in the mean
    assert share_of(features - features.mean(0), features) > 0.4


@torch.no_grad()
def test_the_video_unet_sees_motion_as_well_as_latents() -> None:
    """Slow motion at its scale: some hundredths."""
    unet = TINY.load("video_detokenizer/unet").unet
    latents, motion = noise(4, IN_CHANNELS, 12, 18), noise(4, IN_CHANNELS, 12, 18) * 0.05
    latents[:, -MOTION_CHANNELS:] = 0
    motion[:, :-MOTION_CHANNELS] = 0
    bias = unet.conv_in.bias[:, None, None]
    assert share_of(unet.conv_in(motion) - bias, unet.conv_in(latents) - bias) > 0.5
    encoder = TINY.load("video_detokenizer/motion_encoder")
    moving = noise(2, 2, 24, 12, 18) * torch.tensor([0.05, 0.0]).view(2, 1, 1, 1, 1)
    moved, still = encoder(moving)
    assert share_of(moved - still, moved) > 0.2
