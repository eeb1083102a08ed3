"""Trains the video U-Net and the motion condition encoder with the EDM objective (docs/model.md, section 4.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from videolavit.media.motion import TOKENIZER_SCALE

from ..layers import SpaceTimeBlock
from ..motion_tokenizer import MotionTokenizer, resize_frames
from ..network import ModelError
from ..objective import Draws, Objective, frozen
from .detokenizer import VideoSettings
from .motion_condition import MotionConditionEncoder
from .unet import MotionUNet

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder


@dataclass(frozen=True)
class Preconditioning:
    """EDM's scalings of a network that predicts v, as the sampler's scheduler has them; data have a variance of 1.

    With them the denoised latent is skip * noisy + out * network(scale * noisy, timestep).

    Args:
        sigma: Noise levels.
    """

    sigma: Tensor

    @property
    def scale(self) -> Tensor:
        return (self.sigma.square() + 1).rsqrt()

    @property
    def skip(self) -> Tensor:
        return 1 / (self.sigma.square() + 1)

    @property
    def out(self) -> Tensor:
        return -self.sigma * (self.sigma.square() + 1).rsqrt()

    @property
    def timestep(self) -> Tensor:
        return 0.25 * self.sigma.log()

    @property
    def weight(self) -> Tensor:
        """Of the squared distance to the clean latent: 1 / out^2 makes every level count alike at the start (EDM)."""
        return 1 + self.sigma.square().reciprocal()


class VideoObjective(Objective):
    """`diffusion`: the weighted squared distance of the denoised frames to the real ones.

    Args:
        motion_encoder: Motion -> context.
        unet: The video U-Net.
        vae: Frozen; encodes keyframes, and frames where a batch has no latents.
        tokenizer: Frozen; needed where `token_share` is above 0.
        log_sigma: Mean and standard deviation of the noise levels' logarithm.
        drop_conditions: Share of the samples that see neither keyframe nor motion, as guidance needs.
        token_share: Share of the samples whose motion comes from its codes, as it does in generation.
        told: What the network is told of a clip, and how much noise its keyframe gets; as in sampling.
    """

    def __init__(
        self,
        motion_encoder: MotionConditionEncoder,
        unet: MotionUNet,
        vae: AutoencoderKLTemporalDecoder,
        tokenizer: MotionTokenizer | None,
        scheduler: Any,
        *,
        log_sigma: tuple[float, float],
        drop_conditions: float,
        token_share: float,
        told: VideoSettings | None = None,
    ) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.weights = {"diffusion": 1.0}
        self.motion_encoder = motion_encoder.requires_grad_(True).train()
        self.unet = unet.requires_grad_(True).train()
        self.vae: Any = frozen(vae)
        self.tokenizer: MotionTokenizer | None = frozen(tokenizer) if tokenizer is not None else None
        self._log_sigma, self._drop_conditions, self._token_share = log_sigma, drop_conditions, token_share
        self._told = told or VideoSettings()

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Sums over the samples.

        Args:
            inputs: `latents`, float [batch, time, 4, h, w] without the VAE's factor, or `frames`, uint8 [batch, time,
                height, width, 3]; `keyframes`, uint8 [batch, height, width, 3]; `motion`, float [batch, 2, time, h, w]
                at U-Net scale; `grid`, the same as the motion tokenizer reads it, where codes are used; `num_frames`,
                int64 [batch], of which the rest is padding.
        """
        latents = inputs["latents"] if "latents" in inputs else encode_frames(self.vae, inputs["frames"])
        clean = latents.float() * self.vae.config.scaling_factor
        reference = self._reference(inputs["keyframes"], draws)
        motion = self.told_motion(inputs, draws)
        kept = (draws.uniform("drop conditions") >= self._drop_conditions).to(clean.dtype)
        mean, deviation = self._log_sigma
        level = Preconditioning((mean + deviation * draws.normal("noise level")).exp())
        noisy = clean + _of(level.sigma) * draws.normal("noise", *clean.shape[1:])

        frames = reference[:, None].expand(-1, clean.shape[1], -1, -1, -1)
        constant = torch.cat([frames, motion.transpose(1, 2)], dim=2) * _of(kept)
        context = self.motion_encoder(motion) * kept[:, None, None, None]
        told = clean.new_tensor([self._told.fps, self._told.motion_bucket, self._told.noise_strength])
        sample = torch.cat([_of(level.scale) * noisy, constant], dim=2).to(self.unet.unet.dtype)
        predicted = self.unet(sample, level.timestep, context, told.expand(len(clean), -1)).float()

        denoised = _of(level.skip) * noisy + _of(level.out) * predicted
        errors = (denoised - clean).square().mean((2, 3, 4)) * level.weight[:, None]
        real = torch.arange(clean.shape[1], device=clean.device) < inputs["num_frames"][:, None]
        return {"diffusion": ((errors * real).sum(1) / inputs["num_frames"]).sum()}

    @torch.no_grad()
    def _reference(self, keyframes: Tensor, draws: Draws) -> Tensor:
        """Latents of the keyframes with a little noise, without the VAE's factor, as in sampling."""
        signed = keyframes.permute(0, 3, 1, 2).float() / 127.5 - 1
        noised = signed + self._told.noise_strength * draws.normal("keyframe", *signed.shape[1:])
        return self.vae.encode(noised.to(self.vae.dtype)).latent_dist.mode().float()

    @torch.no_grad()
    def told_motion(self, inputs: dict[str, Tensor], draws: Draws) -> Tensor:
        """The motion that the network is told."""
        motion = inputs["motion"]
        if self.tokenizer is None:
            return motion
        decoded = resize_frames(self.tokenizer.decode(self.tokenizer.encode(inputs["grid"])), *motion.shape[-2:])
        of_codes = draws.uniform("motion of codes") < self._token_share
        return torch.where(_of(of_codes), decoded / TOKENIZER_SCALE, motion)

    def parts(self) -> dict[str, nn.Module]:
        return {"video_detokenizer/motion_encoder": self.motion_encoder, "video_detokenizer/unet": self.unet}

    def fixed(self) -> list[nn.Module]:
        return [self.vae] if self.tokenizer is None else [self.vae, self.tokenizer]

    def units(self) -> list[nn.Module]:
        from diffusers.models.resnet import SpatioTemporalResBlock
        from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

        kinds = (SpaceTimeBlock, SpatioTemporalResBlock, TransformerSpatioTemporalModel)
        parts = (self.motion_encoder, self.unet)
        return [unit for part in parts for unit in part.modules() if isinstance(unit, kinds)]


@torch.no_grad()
def encode_frames(vae: AutoencoderKLTemporalDecoder, frames: Tensor, chunk: int = 8) -> Tensor:
    """Latents [batch, time, 4, h, w], without the VAE's factor, of uint8 [batch, time, height, width, 3]."""
    signed = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = [vae.encode(part.to(vae.dtype)).latent_dist.mode() for part in signed.split(chunk)]
    return torch.cat(latents).unflatten(0, frames.shape[:2])


def check_scheduler(scheduler: Any) -> None:
    """Raises ModelError for a scheduler that samples otherwise than the network is trained."""
    config = scheduler.config
    if (config.prediction_type, config.get("timestep_type")) != ("v_prediction", "continuous"):
        raise ModelError(
            f"the video scheduler has prediction_type {config.prediction_type!r} and timestep_type "
            f"{config.get('timestep_type')!r}; training needs 'v_prediction' and 'continuous' in "
            "video_detokenizer/scheduler"
        )


def _of(values: Tensor) -> Tensor:
    """[batch] to be multiplied with [batch, time, channels, height, width]."""
    return values.view(-1, 1, 1, 1, 1)
