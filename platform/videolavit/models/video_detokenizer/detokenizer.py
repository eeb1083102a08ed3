"""Clips from keyframes and motion: EDM Euler sampling with growing guidance (docs/model.md, section 4.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor

from ..network import STRICT
from ..sampling import (
    OnStep,
    apply_guidance,
    check_size,
    draw_noise,
    prepared_scheduler,
    to_pixels,
    to_signed,
    vae_dtype,
)
from .motion_condition import MotionConditionEncoder
from .unet import MotionUNet

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoSettings:
    """Sampling of a clip; the defaults are the published ones.

    Args:
        video_steps: Number of denoising steps.
        min_guidance: Guidance scale of the first frame.
        max_guidance: Guidance scale of the last frame; it grows linearly in between.
        fps: Frame rate that conditions the U-Net, in frames per second.
        motion_bucket: Amount of motion that conditions the U-Net, on the scale of Stable Video Diffusion.
        noise_strength: Standard deviation of the noise added to the keyframe, for pixels from -1 to 1.
        condition_on_reference: True if guidance weighs the keyframe too; False shows it to the unconditional half.
        decode_chunk: Frames that the VAE decodes at a time. Frames of a chunk influence each other.
    """

    video_steps: int = 25
    min_guidance: float = 1.0
    max_guidance: float = 4.0
    fps: int = 6
    motion_bucket: int = 127
    noise_strength: float = 0.02
    condition_on_reference: bool = True
    decode_chunk: int = 8


@dataclass
class VideoDetokenizer:
    """Generates the frames of clips from keyframes and motion.

    Args:
        motion_encoder: Motion condition encoder.
        unet: Video U-Net.
        vae: VAE with a temporal decoder.
        scheduler: Configured scheduler. It is never stepped; each sampling works on a copy.
    """

    motion_encoder: MotionConditionEncoder
    unet: MotionUNet
    vae: AutoencoderKLTemporalDecoder
    scheduler: Any

    @property
    def _vae_scale(self) -> int:
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @property
    def _dtype(self) -> torch.dtype:
        return self.unet.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.unet.device

    @property
    def pixel_multiple(self) -> int:
        """Number, in pixels, of which the sides of a video must be multiples."""
        return self._vae_scale << (len(self.unet.config.block_out_channels) - 1)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of a video's latents and motion. Raises ValueError for a size that does not fit."""
        check_size(height, width, self.pixel_multiple)
        return height // self._vae_scale, width // self._vae_scale

    @torch.no_grad()
    def encode_keyframes(self, keyframes: NDArray[np.uint8], noise: Tensor, strength: float) -> Tensor:
        """Encodes keyframes to latents [batch, 4, height / 8, width / 8], without the scaling factor as in SVD.

        Args:
            keyframes: Pictures, uint8 [batch, height, width, 3].
            noise: Standard normal noise, [batch, 3, height, width].
            strength: Factor of the noise, which is added to pixels from -1 to 1.
        """
        with vae_dtype(self.vae) as dtype:
            images = to_signed(keyframes).to(self.device) + strength * noise.to(self.device)
            return self.vae.encode(images.to(dtype)).latent_dist.mode().float()

    @torch.no_grad()
    def sample(
        self,
        motion: Tensor,
        reference: Tensor,
        noise: Tensor,
        settings: VideoSettings,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Denoises to latents [batch, time, 4, height / 8, width / 8].

        Args:
            motion: Motion at the U-Net scale, [batch, 2, time, height / 8, width / 8].
            reference: Latents of the keyframes, from `encode_keyframes`.
            noise: Standard normal noise, [batch, time, 4, height / 8, width / 8].
            settings: Settings of sampling.
            on_step: Called after each step.
        """
        scheduler = prepared_scheduler(self.scheduler, settings.video_steps, self.device)
        constant, context, added = self._conditions(motion, reference, settings)
        weights = torch.linspace(settings.min_guidance, settings.max_guidance, motion.shape[2], device=self.device)
        weights = weights[:, None, None, None]
        latents = noise * scheduler.init_noise_sigma
        with self.unet.sampling():
            for index, timestep in enumerate(scheduler.timesteps):
                scaled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
                sample = torch.cat([scaled.to(self._dtype), constant], dim=2)
                prediction = apply_guidance(self.unet(sample, timestep, context, added).float(), weights)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
                kept = on_step(index + 1, settings.video_steps) if on_step is not None else None
                if kept is not None:
                    rows = list(kept)
                    latents, motion, reference = latents[rows], motion[rows], reference[rows]
                    constant, context, added = self._conditions(motion, reference, settings)
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor, chunk: int) -> NDArray[np.uint8]:
        """Decodes latents to uint8 frames [batch, time, height, width, 3], a chunk of frames at a time."""
        with vae_dtype(self.vae) as dtype:
            videos = [
                np.concatenate(
                    [
                        to_pixels(self.vae.decode(part, num_frames=len(part)).sample)
                        for part in (video / self.vae.config.scaling_factor).to(dtype).split(chunk)
                    ]
                )
                for video in latents
            ]
        return np.stack(videos)

    def generate(
        self,
        keyframes: NDArray[np.uint8],
        motion: Tensor,
        generators: list[torch.Generator],
        settings: VideoSettings,
        on_step: OnStep | None = None,
    ) -> NDArray[np.uint8]:
        """Generates uint8 frames [batch, time, height, width, 3] of clips.

        Args:
            keyframes: Keyframes, uint8 [batch, height, width, 3].
            motion: Motion at the U-Net scale, [batch, 2, time, height / 8, width / 8].
            generators: One per clip, for the noise of its keyframe and latents.
            settings: Settings of sampling.
            on_step: Called after each step.
        """
        height, width = self.latent_size(*keyframes.shape[1:3])
        like = torch.empty(0, device=self.device)
        noise_image = draw_noise((3, *keyframes.shape[1:3]), generators, like)
        reference = self.encode_keyframes(keyframes, noise_image, settings.noise_strength)
        noise = draw_noise((motion.shape[2], 4, height, width), generators, like)
        return self.decode(
            self.sample(motion.to(self.device), reference, noise, settings, on_step), settings.decode_chunk
        )

    def _conditions(self, motion: Tensor, reference: Tensor, settings: VideoSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Returns constant channels of the doubled batch, the context of its conditional half, and added ids."""
        motion = motion.to(self._dtype)
        context = self.motion_encoder(motion)
        frames = reference.to(self._dtype)[:, None].expand(-1, motion.shape[2], -1, -1, -1)
        moving = motion.transpose(1, 2)
        still = torch.zeros_like(frames) if settings.condition_on_reference else frames
        unconditional = torch.cat([still, torch.zeros_like(moving)], dim=2)
        constant = torch.cat([unconditional, torch.cat([frames, moving], dim=2)])
        added_ids = torch.tensor([settings.fps, settings.motion_bucket, settings.noise_strength])
        added = added_ids.to(self.device, self._dtype).expand(len(constant), -1)
        return constant, context, added


def edm_scheduler() -> EulerDiscreteScheduler:
    """Builds Stable Video Diffusion's scheduler: EDM's Euler steps over Karras sigmas from 700 to 0.002."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
