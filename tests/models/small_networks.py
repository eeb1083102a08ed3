"""Networks of a few thousand weights, large enough ones that every part of a network shows in its output."""

from typing import TypeVar

import torch
from torch import nn

from tests.parity import rule
from videolavit.models.keyframe_detokenizer import ConditionDecoder, ConditionDecoderConfig
from videolavit.models.motion_tokenizer import MotionTokenizer, MotionTokenizerConfig
from videolavit.models.network import load_exactly
from videolavit.models.video_detokenizer import (
    MotionConditionEncoder,
    MotionConditionEncoderConfig,
    MotionUNet,
    MotionUNetConfig,
)
from videolavit.models.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

SEED = 11
M = TypeVar("M", bound=nn.Module)

VISUAL = VisualTokenizerConfig(
    image_size=28,
    patch_size=7,
    width=16,
    vit_layers=1,
    vit_heads=2,
    vit_head_out=4,
    merger_layers=2,
    merger_heads=2,
    num_codes=20,
    code_dim=4,
    features_dim=8,
)
MOTION = MotionTokenizerConfig(
    dim=16, num_heads=2, num_frames=8, grid_height=8, grid_width=12, num_codes=12, code_dim=4
)
CONDITIONS = ConditionDecoderConfig(
    num_codes=20,
    code_dim=4,
    dim=16,
    depth=2,
    num_heads=2,
    max_codes=16,
    feature_dim=16,
    context_dims=(8, 12),
    pooled_dim=6,
)
MOTION_ENCODER = MotionConditionEncoderConfig(dim=16, num_heads=2, depth=1, out_channels=12, temporal_frames=8)
VIDEO_UNET = MotionUNetConfig(
    block_out_channels=(32, 64),
    num_attention_heads=(2, 4),
    layers_per_block=1,
    cross_attention_dim=12,
    addition_time_embed_dim=8,
)


def filled(module: M) -> M:
    """Weights by the rule of the parity packs, for evaluation."""
    state = rule.parameters(SEED, {name: tensor.shape for name, tensor in module.state_dict().items()})
    load_exactly(module, {name: torch.from_numpy(array) for name, array in state.items()}, "the rule")
    return module.eval().requires_grad_(False)


def visual_tokenizer() -> VisualTokenizer:
    return filled(VisualTokenizer(VISUAL))


def motion_tokenizer() -> MotionTokenizer:
    return filled(MotionTokenizer(MOTION))


def condition_decoder() -> ConditionDecoder:
    return filled(ConditionDecoder(CONDITIONS, noise(CONDITIONS.num_codes, CONDITIONS.code_dim)))


def motion_encoder() -> MotionConditionEncoder:
    return filled(MotionConditionEncoder(MOTION_ENCODER))


def video_unet() -> MotionUNet:
    return filled(MotionUNet(VIDEO_UNET))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
