"""Training of the keyframe detokenizer: the condition decoder, then the U-Net too (docs/model.md, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..network import ModelError
from ..objective import SAMPLE_LOSSES, Draws, Objective, frozen, sample_losses
from ..visual_tokenizer import VisualTokenizer, normalize_images
from .conditions import ConditionBlock, ConditionDecoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

PAD = -1
"""Pads the codes of an image to the largest number in its batch."""


class PictureTargets(nn.Module):
    """Training targets of pictures, computed by the frozen networks."""

    def __init__(self, tokenizer: VisualTokenizer, vae: AutoencoderKL) -> None:
        super().__init__()
        self.tokenizer: VisualTokenizer = frozen(tokenizer)
        self.vae: Any = frozen(vae)

    @torch.no_grad()
    def forward(self, images: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        """Returns `codes` int64 [batch, longest], ViT `features` [batch, patches, width], and scaled `latents`.

        Args:
            images: Pictures at the tokenizer's size, uint8 [batch, size, size, 3].
            pictures: Pictures at the detokenizer's size, uint8 [batch, height, width, 3].
        """
        codes, features = self._tokenized(images)
        signed = pictures.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.vae.encode(signed.to(self.vae.dtype)).latent_dist.mode() * self.vae.config.scaling_factor
        padded = pad_sequence(codes, batch_first=True, padding_value=PAD)
        return {"codes": padded, "features": features, "latents": latents}

    def codes(self, images: Tensor) -> list[Tensor]:
        """Returns the codes of each image, int64."""
        return self._tokenized(images)[0]

    @torch.no_grad()
    def _tokenized(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.tokenizer.patch_features(normalize_images(images.to(self.vae.device)))
        keep = self.tokenizer.choose(features)
        merged = self.tokenizer.merge(features, keep)
        codes = self.tokenizer.quantize(self.tokenizer.encode_task_layer(merged[keep]))
        return list(codes.split(keep.sum(1).tolist())), features


class KeyframeObjective(Objective):
    """Cosine distance of reconstructed ViT features (`features`) and error of the predicted noise (`diffusion`).

    Args:
        targets: Computes the targets of a batch that holds pictures.
        conditions: Condition decoder with its codebook.
        unet: U-Net with SDXL's interface, which predicts noise.
        scheduler: Scheduler with the noise schedule of training.
        pixels_per_latent: Pixels per side of a latent; the U-Net's size ids are in pixels.
        condition_steps: Steps in which only the condition decoder is trained.
        feature_weight: Weight of the term `features`, in both stages.
        drop_conditions: Share of the samples whose conditions are replaced by zeros, for guidance.
    """

    def __init__(
        self,
        targets: PictureTargets,
        conditions: ConditionDecoder,
        unet: UNet2DConditionModel,
        scheduler: Any,
        *,
        pixels_per_latent: int,
        condition_steps: int,
        feature_weight: float,
        drop_conditions: float,
    ) -> None:
        super().__init__()
        if scheduler.config.prediction_type != "epsilon":
            raise ModelError(
                f"the keyframe scheduler's prediction_type is {scheduler.config.prediction_type!r}; training predicts "
                "noise, so set `epsilon` in keyframe_detokenizer/scheduler"
            )
        self.targets = targets
        self.conditions = conditions.requires_grad_(True).train()
        self.unet = unet.requires_grad_(True).train()
        self.register_buffer("signal", scheduler.alphas_cumprod.clone(), persistent=False)
        self.signal: Tensor
        self.weights = {"features": feature_weight, "diffusion": 1.0}
        self._pixels_per_latent, self._condition_steps = pixels_per_latent, condition_steps
        self._drop_conditions = drop_conditions
        self._diffuses = True

    def begin_step(self, step: int) -> None:
        self._diffuses = step >= self._condition_steps

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Returns the terms, summed over the samples.

        Args:
            inputs: Arguments of `PictureTargets`, or its results.
            draws: Random numbers of the batch.
        """
        given = inputs if "latents" in inputs else self.targets(**inputs)
        features = self.conditions.features([row[row != PAD] for row in given["codes"]])
        distance = 1 - F.cosine_similarity(features.float(), given["features"].float(), dim=-1)
        means = {"features": distance.mean(1), "diffusion": distance.new_zeros(len(distance))}
        if self._diffuses:
            means["diffusion"] = self._diffusion(given["latents"].float(), features, draws)
        return {name: mean.sum() for name, mean in means.items()} | {SAMPLE_LOSSES: sample_losses(means, self.weights)}

    def _diffusion(self, latents: Tensor, features: Tensor, draws: Draws) -> Tensor:
        """Returns the mean squared error of the predicted noise, [batch]."""
        timesteps = draws.integers("timestep", len(self.signal))
        noise = draws.normal("noise", *latents.shape[1:])
        signal = self.signal[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        kept = (draws.uniform("drop conditions") >= self._drop_conditions).to(features.dtype)
        context, pooled = self.conditions.of_features(features)
        size = [side * self._pixels_per_latent for side in latents.shape[-2:]]
        ids = torch.tensor([[*size, 0, 0, *size]], device=latents.device, dtype=self.unet.dtype)
        added = {"text_embeds": pooled * kept[:, None], "time_ids": ids.expand(len(latents), -1)}
        predicted = self.unet(
            noisy.to(self.unet.dtype), timesteps, context * kept[:, None, None], added_cond_kwargs=added
        ).sample
        return (predicted.float() - noise).square().flatten(1).mean(1)

    def parts(self) -> dict[str, nn.Module]:
        return {"keyframe_detokenizer/conditions": self.conditions, "keyframe_detokenizer/unet": self.unet}

    def fixed(self) -> list[nn.Module]:
        return [self.targets]

    def units(self) -> list[nn.Module]:
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        kinds = (ConditionBlock, ResnetBlock2D, Transformer2DModel)
        return [unit for part in (self.conditions, self.unet) for unit in part.modules() if isinstance(unit, kinds)]
