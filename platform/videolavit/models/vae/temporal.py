"""Initialization of a video VAE from a picture VAE, as for Stable Video Diffusion."""

import re
from typing import Any

import torch
from torch import nn

from ..network import ModelError

_RESNET = re.compile(r"^(decoder\..*resnets\.\d+)\.")


@torch.no_grad()
def initialize_from_image_vae(video: Any, pictures: Any) -> None:
    """Copies the weights of an AutoencoderKL into an AutoencoderKLTemporalDecoder, in place.

    The encoders are equal. The decoder starts frame by frame: its temporal layers add nothing yet.

    Args:
        video: Video VAE to initialize.
        pictures: Picture VAE.

    Raises:
        ModelError: the shapes differ.
    """
    state, given = video.state_dict(), pictures.state_dict()
    convolve, bias = given["decoder.conv_in.weight"], given["decoder.conv_in.bias"]
    # the video decoder lacks the 1 x 1 convolution before the first one, so it is merged into that
    before, shift = given["post_quant_conv.weight"][:, :, 0, 0], given["post_quant_conv.bias"]
    given["decoder.conv_in.weight"] = torch.einsum("omhw,mi->oihw", convolve, before)
    given["decoder.conv_in.bias"] = bias + torch.einsum("omhw,m->o", convolve, shift)
    for name, value in given.items():
        ours = _RESNET.sub(r"\1.spatial_res_block.", name)
        if ours in state:  # the middle of a picture decoder may have one more block
            if state[ours].shape != value.shape:
                raise ModelError(
                    f"the video VAE's {ours} is {list(state[ours].shape)} and the keyframe VAE's {list(value.shape)}; "
                    "start from the model's own weights with objective.start=model"
                )
            state[ours] = value
    for name, value in state.items():
        if ".temporal_res_block.conv2." in name:
            state[name] = torch.zeros_like(value)
    video.load_state_dict(state)
    last = video.decoder.time_conv_out
    nn.init.dirac_(last.weight)
    nn.init.zeros_(last.bias)
