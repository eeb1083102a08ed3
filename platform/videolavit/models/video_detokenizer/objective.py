"""Training of the video U-Net and the motion condition encoder (docs/model.md, section 4.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from videolavit.media.motion import TOKENIZER_SCALE

from ..layers import SpaceTimeBlock
from ..motion_tokenizer import MotionTokenizer, resize_frames
from ..network import ModelError
from ..objective import SAMPLE_LOSSES, Draws, Objective, frozen, sample_losses
from .detokenizer import VideoSettings
from .motion_condition import MotionConditionEncoder
from .unet import MotionUNet

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder


@dataclass(frozen=True)
class Preconditioning:
    """EDM's scalings for a network that predicts v, equal to the sampler's; data have a variance of 1.

    The denoised latent is skip * noisy + out * network(scale * noisy, timestep).

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
        """Weight of the squared error: 1 / out^2, so that all noise levels count alike at the start, as in EDM."""
        return 1 + self.sigma.square().reciprocal()


class VideoObjective(Objective):
    """Weighted squared error of denoised frames (`diffusion`).

    Args:
        motion_encoder: Motion condition encoder.
        unet: Video U-Net.
        vae: Frozen VAE. It encodes keyframes, and frames where a batch has no latents.
        tokenizer: Frozen motion tokenizer; needed if `token_share` is above 0.
        scheduler: The sampler's scheduler, which must fit the objective.
        log_sigma: Mean and standard deviation of the noise levels' natural logarithm.
        drop_conditions: Share of the samples without keyframe and motion, for guidance.
        token_share: Share of the samples whose motion is decoded from its codes, as in generation.
        sampling: Settings of sampling whose frame rate, motion bucket and noise strength condition the U-Net.
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
        sampling: VideoSettings | None = None,
    ) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.weights = {"diffusion": 1.0}
        self.motion_encoder = motion_encoder.requires_grad_(True).train()
        self.unet = unet.requires_grad_(True).train()
        self.vae: Any = frozen(vae)
        self.tokenizer: MotionTokenizer | None = frozen(tokenizer) if tokenizer is not None else None
        self._log_sigma, self._drop_conditions, self._token_share = log_sigma, drop_conditions, token_share
        self._sampling = sampling or VideoSettings()

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Returns the term, summed over the samples.

        Args:
            inputs: `latents`, float [batch, time, 4, h, w] without the VAE's factor, or `frames`, uint8 [batch, time,
                height, width, 3]; `keyframes`, uint8 [batch, height, width, 3]; `motion`, float [batch, 2, time, h, w]
                at the U-Net scale; `grid`, the same motion at the tokenizer scale, if codes are used; `num_frames`,
                the number of real frames, int64 [batch].
            draws: Random numbers of the batch.
        """
        latents = inputs["latents"] if "latents" in inputs else encode_frames(self.vae, inputs["frames"])
        clean = latents.float() * self.vae.config.scaling_factor
        reference = self._reference(inputs["keyframes"], draws)
        motion = self.motion_input(inputs, draws)
        kept = (draws.uniform("drop conditions") >= self._drop_conditions).to(clean.dtype)
        mean, deviation = self._log_sigma
        level = Preconditioning((mean + deviation * draws.normal("noise level")).exp())
        noisy = clean + _per_sample(level.sigma) * draws.normal("noise", *clean.shape[1:])

        frames = reference[:, None].expand(-1, clean.shape[1], -1, -1, -1)
        constant = torch.cat([frames, motion.transpose(1, 2)], dim=2) * _per_sample(kept)
        context = self.motion_encoder(motion) * kept[:, None, None, None]
        added_ids = clean.new_tensor([self._sampling.fps, self._sampling.motion_bucket, self._sampling.noise_strength])
        sample = torch.cat([_per_sample(level.scale) * noisy, constant], dim=2).to(self.unet.unet.dtype)
        predicted = self.unet(sample, level.timestep, context, added_ids.expand(len(clean), -1)).float()

        denoised = _per_sample(level.skip) * noisy + _per_sample(level.out) * predicted
        errors = (denoised - clean).square().mean((2, 3, 4)) * level.weight[:, None]
        real = torch.arange(clean.shape[1], device=clean.device) < inputs["num_frames"][:, None]
        means = {"diffusion": (errors * real).sum(1) / inputs["num_frames"]}
        return {"diffusion": means["diffusion"].sum(), SAMPLE_LOSSES: sample_losses(means, self.weights)}

    @torch.no_grad()
    def _reference(self, keyframes: Tensor, draws: Draws) -> Tensor:
        """Encodes noised keyframes, without the VAE's factor, as in sampling."""
        signed = keyframes.permute(0, 3, 1, 2).float() / 127.5 - 1
        noised = signed + self._sampling.noise_strength * draws.normal("keyframe", *signed.shape[1:])
        return self.vae.encode(noised.to(self.vae.dtype)).latent_dist.mode().float()

    @torch.no_grad()
    def motion_input(self, inputs: dict[str, Tensor], draws: Draws) -> Tensor:
        """Returns the motion for the U-Net: raw, or decoded from its codes for a share of the samples."""
        motion = inputs["motion"]
        if self.tokenizer is None:
            return motion
        decoded = resize_frames(self.tokenizer.decode(self.tokenizer.encode(inputs["grid"])), *motion.shape[-2:])
        of_codes = draws.uniform("motion of codes") < self._token_share
        return torch.where(_per_sample(of_codes), decoded / TOKENIZER_SCALE, motion)

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
    """Encodes uint8 frames [batch, time, height, width, 3] to [batch, time, 4, h, w], without the VAE's factor."""
    signed = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = [vae.encode(part.to(vae.dtype)).latent_dist.mode() for part in signed.split(chunk)]
    return torch.cat(latents).unflatten(0, frames.shape[:2])


def check_scheduler(scheduler: Any) -> None:
    """Raises ModelError for a scheduler that does not fit the training objective."""
    config = scheduler.config
    if (config.prediction_type, config.get("timestep_type")) != ("v_prediction", "continuous"):
        raise ModelError(
            f"the video scheduler has prediction_type {config.prediction_type!r} and timestep_type "
            f"{config.get('timestep_type')!r}; training needs 'v_prediction' and 'continuous' in "
            "video_detokenizer/scheduler"
        )


def _per_sample(values: Tensor) -> Tensor:
    """Reshapes [batch] for multiplication with [batch, time, channels, height, width]."""
    return values.view(-1, 1, 1, 1, 1)
