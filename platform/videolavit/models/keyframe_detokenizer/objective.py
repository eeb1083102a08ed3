"""Training of the keyframe detokenizer: the condition decoder, then the U-Net too (docs/model.md, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..network import ModelError
from ..objective import Draws, Objective, frozen
from ..visual_tokenizer import VisualTokenizer, normalize_images
from .conditions import ConditionBlock, ConditionDecoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

PAD = -1
"""Behind the codes of an image that has fewer than the longest of its batch."""


class PictureTargets(nn.Module):
    """What the frozen networks make of pictures."""

    def __init__(self, tokenizer: VisualTokenizer, vae: AutoencoderKL) -> None:
        super().__init__()
        self.tokenizer: VisualTokenizer = frozen(tokenizer)
        self.vae: Any = frozen(vae)

    @torch.no_grad()
    def forward(self, images: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        """`codes` int64 [batch, longest], `features` of the ViT [batch, patches, width], scaled `latents`.

        Args:
            images: uint8 [batch, size, size, 3] at the tokenizer's size.
            pictures: uint8 [batch, height, width, 3] at the detokenizer's size.
        """
        codes, features = self._tokenized(images)
        signed = pictures.to(self.vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.vae.encode(signed.to(self.vae.dtype)).latent_dist.mode() * self.vae.config.scaling_factor
        padded = pad_sequence(codes, batch_first=True, padding_value=PAD)
        return {"codes": padded, "features": features, "latents": latents}

    def codes(self, images: Tensor) -> list[Tensor]:
        """Those of each image, int64."""
        return self._tokenized(images)[0]

    @torch.no_grad()
    def _tokenized(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.tokenizer.patch_features(normalize_images(images.to(self.vae.device)))
        keep = self.tokenizer.choose(features)
        merged = self.tokenizer.merge(features, keep)
        codes = self.tokenizer.quantize(self.tokenizer.encode_task_layer(merged[keep]))
        return list(codes.split(keep.sum(1).tolist())), features


class KeyframeObjective(Objective):
    """Cosine distance of the reconstructed ViT features (`features`), and of the U-Net's noise (`diffusion`).

    Args:
        targets: Used where a batch has pictures and not yet what becomes of them.
        conditions: Codes -> conditions, with its codebook.
        unet: With SDXL's interface; predicts the noise.
        scheduler: Its noise schedule is the one of training.
        pixels_per_latent: The VAE's factor: the U-Net is told sizes in pixels.
        condition_steps: Steps in which only the features are learned.
        feature_weight: Of the features in the loss, in both stages.
        drop_conditions: Share of the samples whose conditions are zeros, as guidance needs.
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
        """Sums over the samples.

        Args:
            inputs: As `PictureTargets` makes or takes them.
        """
        given = inputs if "latents" in inputs else self.targets(**inputs)
        features = self.conditions.features([row[row != PAD] for row in given["codes"]])
        distance = 1 - F.cosine_similarity(features.float(), given["features"].float(), dim=-1)
        sums = {"features": distance.mean(1).sum(), "diffusion": distance.new_zeros(())}
        if self._diffuses:
            sums["diffusion"] = self._diffusion(given["latents"].float(), features, draws)
        return sums

    def _diffusion(self, latents: Tensor, features: Tensor, draws: Draws) -> Tensor:
        """The sum over the samples of the mean squared error of the predicted noise."""
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
        return (predicted.float() - noise).square().flatten(1).mean(1).sum()

    def parts(self) -> dict[str, nn.Module]:
        return {"keyframe_detokenizer/conditions": self.conditions, "keyframe_detokenizer/unet": self.unet}

    def fixed(self) -> list[nn.Module]:
        return [self.targets]

    def units(self) -> list[nn.Module]:
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        kinds = (ConditionBlock, ResnetBlock2D, Transformer2DModel)
        return [unit for part in (self.conditions, self.unet) for unit in part.modules() if isinstance(unit, kinds)]
