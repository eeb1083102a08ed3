"""Pictures from visual codes: the guided diffusion loop and its starts (docs/model.md, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videolavit.media.resize import resize_picture

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
from .conditions import ConditionDecoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class Conditions:
    """Conditions of the U-Net for a batch of pictures.

    Args:
        context: Context of the cross-attention, [batch, tokens, channels].
        pooled: Pooled condition, [batch, channels].
    """

    context: Tensor
    pooled: Tensor

    def rows(self, kept: Sequence[int]) -> Conditions:
        """Returns the conditions of some of the pictures."""
        return Conditions(self.context[list(kept)], self.pooled[list(kept)])

    def doubled(self) -> Conditions:
        """Returns a doubled batch whose first half, the unconditional one, is zeros."""
        return Conditions(*(torch.cat([torch.zeros_like(one), one]) for one in (self.context, self.pooled)))


@dataclass(frozen=True)
class Start:
    """Starting point of sampling.

    Args:
        latents: Latents at the noise level of the first step to run, [batch, 4, height / 8, width / 8].
        step: Index of that step in the schedule.
    """

    latents: Tensor
    step: int = 0


@dataclass
class KeyframeDetokenizer:
    """Generates pictures from visual codes.

    Args:
        conditions: Decodes codes to conditions.
        unet: U-Net with SDXL's interface.
        vae: VAE of pictures.
        scheduler: Configured scheduler. It is never stepped; each sampling works on a copy.
    """

    conditions: ConditionDecoder
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any

    @property
    def pixel_multiple(self) -> int:
        """Number, in pixels, of which the sides of a picture must be multiples."""
        return int(self._vae_scale << (len(self.unet.config.block_out_channels) - 1))

    @property
    def _vae_scale(self) -> int:
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def decode_codes(self, ids: list[Tensor]) -> Conditions:
        """Computes the conditions of images. Raises ValueError for too many codes or an unknown one."""
        context, pooled = self.conditions(ids)
        return Conditions(context.to(self.unet.dtype), pooled.to(self.unet.dtype))

    def noise(self, height: int, width: int, steps: int, generators: list[torch.Generator]) -> Start:
        """Draws a start of pure noise, one picture per generator. Raises ValueError for a size that does not fit."""
        check_size(height, width, self.pixel_multiple)
        shape = (4, height // self._vae_scale, width // self._vae_scale)
        scheduler = prepared_scheduler(self.scheduler, steps, self.unet.device)
        noise = draw_noise(shape, generators, torch.empty(0, device=self.unet.device))
        return Start(noise * scheduler.init_noise_sigma)

    def encode(self, pictures: NDArray[np.uint8], height: int, width: int) -> Tensor:
        """Resizes uint8 pictures and encodes them to scaled latents [batch, 4, height / 8, width / 8]: the mode."""
        resized = [resize_picture(one, height, width) for one in pictures]
        with vae_dtype(self.vae) as dtype:
            images = to_signed(np.stack(resized)).to(self.vae.device, dtype)
            latents = self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor
        return latents.float()

    def noised_start(self, latents: Tensor, noise: Tensor, rate: float, steps: int) -> Start:
        """Starts from the last frame of the clip before, noised to a late step: the released code's constraint.

        The released code also multiplies by the scheduler's first noise level. That is 1 for DDIM; for
        EulerAncestral it gives latents of a wrong scale, and is left out here.

        Args:
            latents: Latents of the last frame, from `encode`.
            noise: Standard normal noise of the same shape.
            rate: Share of the schedule that is skipped; 0.85 as published.
            steps: Length of the schedule.
        """
        scheduler, first = self._late(rate, steps)
        return Start(scheduler.add_noise(latents, noise, scheduler.timesteps[first : first + 1]), first)

    @torch.no_grad()
    def inverted_start(self, latents: Tensor, conditions: Conditions, rate: float, steps: int) -> Start:
        """Starts from the last frame, inverted by deterministic DDIM steps: the paper's constraint (its equation 4).

        Args:
            latents: Latents of the last frame, from `encode`.
            conditions: Conditions of the new keyframe.
            rate: Share of the schedule that is skipped.
            steps: Length of the schedule.
        """
        from diffusers import DDIMInverseScheduler, DDIMScheduler

        scheduler, first = self._late(rate, steps)
        inverse = DDIMInverseScheduler.from_config(scheduler.config)
        inverse.set_timesteps(steps, device=self.unet.device)
        size = (latents.shape[-2] * self._vae_scale, latents.shape[-1] * self._vae_scale)
        for timestep in inverse.timesteps[: steps - first]:
            noise = self._predict(latents, timestep, conditions, size)
            latents = inverse.step(noise, timestep, latents).prev_sample
        if not isinstance(scheduler, DDIMScheduler):  # schedulers over sigmas leave the signal at full scale
            reached = inverse.timesteps[steps - first - 1].long()
            latents = latents / inverse.alphas_cumprod.to(latents)[reached].sqrt()
        return Start(latents, first)

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        start: Start,
        steps: int,
        guidance: float,
        generators: list[torch.Generator] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Denoises to latents [batch, 4, height / 8, width / 8].

        Args:
            conditions: Conditions of the pictures.
            start: Starting point.
            steps: Length of the schedule; the start must belong to one of the same length.
            guidance: Scale of classifier-free guidance.
            generators: One per picture, for schedulers that draw noise in their steps.
            on_step: Called after each step.
        """
        scheduler = prepared_scheduler(self.scheduler, steps, self.unet.device)
        scheduler.set_begin_index(start.step) if hasattr(scheduler, "set_begin_index") else None
        latents = start.latents
        size = (latents.shape[-2] * self._vae_scale, latents.shape[-1] * self._vae_scale)
        doubled = conditions.doubled()
        draws = {"generator": generators} if "generator" in scheduler.step.__code__.co_varnames else {}
        timesteps = scheduler.timesteps[start.step :]
        for index, timestep in enumerate(timesteps):
            scaled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            prediction = apply_guidance(self._predict(scaled, timestep, doubled, size), guidance)
            latents = scheduler.step(prediction, timestep, latents, **draws).prev_sample
            kept = on_step(index + 1, len(timesteps)) if on_step is not None else None
            if kept is not None:
                latents, conditions = latents[list(kept)], conditions.rows(kept)
                doubled = conditions.doubled()
                draws = {name: [each[row] for row in kept] for name, each in draws.items() if each is not None}
        return latents

    def generate(
        self,
        ids: list[Tensor],
        size: tuple[int, int],
        steps: int,
        guidance: float,
        generators: list[torch.Generator],
        on_step: OnStep | None = None,
    ) -> NDArray[np.uint8]:
        """Generates uint8 pictures [batch, height, width, 3] from the codes of images, starting from pure noise.

        Args:
            ids: Codes of each image.
            size: Height and width, in pixels.
            steps: Length of the schedule.
            guidance: Scale of classifier-free guidance.
            generators: One per picture.
            on_step: Called after each step.

        Raises:
            ValueError: the size does not fit, an image has too many codes or an unknown one.
        """
        start = self.noise(*size, steps, generators)
        return self.decode(self.sample(self.decode_codes(ids), start, steps, guidance, generators, on_step))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decodes latents to uint8 pictures [batch, height, width, 3], one at a time to bound memory."""
        with vae_dtype(self.vae) as dtype:
            scaled = (latents / self.vae.config.scaling_factor).to(dtype)
            return np.concatenate([to_pixels(self.vae.decode(one).sample) for one in scaled.split(1)])

    def _predict(self, latents: Tensor, timestep: Tensor, conditions: Conditions, size: tuple[int, int]) -> Tensor:
        ids = torch.tensor([[*size, 0, 0, *size]], device=self.unet.device, dtype=self.unet.dtype)
        added = {"text_embeds": conditions.pooled, "time_ids": ids.expand(len(latents), -1)}
        prediction = self.unet(
            latents.to(self.unet.dtype), timestep, conditions.context, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction.float()

    def _late(self, rate: float, steps: int) -> tuple[Any, int]:
        """Returns a prepared scheduler, and the first step to run after a share of them is skipped."""
        if not 0 < rate < 1:
            raise ValueError(f"the rate must be between 0 and 1, not {rate:g}")
        return prepared_scheduler(self.scheduler, steps, self.unet.device), int(rate * steps)
