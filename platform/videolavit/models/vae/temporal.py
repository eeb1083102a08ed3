"""A VAE of videos that begins as one of pictures, as Stable Video Diffusion's did."""

import re
from typing import Any

import torch
from torch import nn

from ..network import ModelError

_RESNET = re.compile(r"^(decoder\..*resnets\.\d+)\.")


@torch.no_grad()
def initialize_from_image_vae(video: Any, pictures: Any) -> None:
    """Gives an AutoencoderKLTemporalDecoder the weights of an AutoencoderKL, in place.

    The encoders are the same. The decoder begins frame by frame: what looks at neighbouring frames adds nothing yet.

    Raises:
        ModelError: they have other shapes.
    """
    state, given = video.state_dict(), pictures.state_dict()
    convolve, bias = given["decoder.conv_in.weight"], given["decoder.conv_in.bias"]
    # the video decoder has no 1 x 1 convolution in front: it becomes a part of the first one
    before, shift = given["post_quant_conv.weight"][:, :, 0, 0], given["post_quant_conv.bias"]
    given["decoder.conv_in.weight"] = torch.einsum("omhw,mi->oihw", convolve, before)
    given["decoder.conv_in.bias"] = bias + torch.einsum("omhw,m->o", convolve, shift)
    for name, value in given.items():
        ours = _RESNET.sub(r"\1.spatial_res_block.", name)
        if ours in state:  # the middle of a picture's decoder may have a block more
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
