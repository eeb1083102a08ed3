"""Training of a VAE of pictures or short videos from scratch.

Stable Diffusion's VAEs are also trained with a perceptual and an adversarial term, which need further networks. Without
them pictures are smoother.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..objective import SAMPLE_LOSSES, Draws, Objective, Reduce, sample_losses


class VAEObjective(Objective):
    """Reconstruction of pictures through a noisy bottleneck.

    The terms are means per sample: `pixels`, the squared error of values from -1 to 1; `edges`, the absolute error of
    differences between neighbouring pixels; and `kl`, the divergence of the posterior per value of the latent.

    Args:
        vae: AutoencoderKL, or AutoencoderKLTemporalDecoder for sequences of pictures.
        part: Name of its part in a model folder.
        weights: Weights of the terms.
        train_encoder: True to train the encoder too; False keeps the latents as they are.
        decay: Decay per step of the running moments by which the scale of the latents is measured.
    """

    def __init__(
        self, vae: Any, part: str, weights: dict[str, float], train_encoder: bool = True, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True).train()
        for encoder in (vae.encoder, vae.quant_conv):
            encoder.requires_grad_(train_encoder)
        self.part, self.weights, self._decay = part, weights, decay
        self.register_buffer("moments", torch.zeros(3))  # running sums of 1, x and x squared of the latents' x
        self.register_buffer("batch_moments", torch.zeros(3), persistent=False)
        self.moments: Tensor
        self.batch_moments: Tensor

    def forward(self, inputs: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Returns the terms, summed over the samples.

        Args:
            inputs: `pictures`, uint8 [batch, 3, height, width], or [batch, time, 3, height, width] for a temporal VAE.
            draws: Random numbers of the batch.
        """
        pictures = inputs["pictures"].float() / 127.5 - 1
        sequence = pictures.shape[1:-3]
        frames = pictures.flatten(0, -4)
        posterior = self.vae.encode(frames).latent_dist
        noise = draws.normal("posterior", *sequence, *posterior.mean.shape[1:])
        latents = posterior.mean + posterior.std * noise.view_as(posterior.mean)
        if self.training:
            self._measure(latents.detach())
        decoded = self.vae.decode(latents, **({"num_frames": sequence[0]} if sequence else {})).sample
        errors = (decoded - frames).float()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
        edges = torch.cat([errors.diff(dim=-1).abs().flatten(1), errors.diff(dim=-2).abs().flatten(1)], dim=1)
        terms = {"pixels": errors.square().flatten(1), "edges": edges, "kl": kl.float().flatten(1)}
        per_sample = len(frames) // len(pictures)
        means = {name: term.mean(1) for name, term in terms.items()}
        of_samples = {name: mean.view(len(pictures), -1).mean(1) for name, mean in means.items()}
        sums = {name: mean.sum() / per_sample for name, mean in means.items()}
        return {**sums, SAMPLE_LOSSES: sample_losses(of_samples, self.weights)}

    def after_step(self, reduce: Reduce) -> None:
        self.moments.mul_(self._decay).add_(reduce(self.batch_moments))
        self.batch_moments.zero_()

    def drop_step(self) -> None:
        self.batch_moments.zero_()

    def parts(self) -> dict[str, nn.Module]:
        """Returns the VAE. Its config gets the measured factor that gives latents a standard deviation of 1."""
        if self.moments[0] > 0:
            mean, square = (self.moments[1:] / self.moments[0]).tolist()
            self.vae.register_to_config(scaling_factor=(square - mean**2) ** -0.5)
        return {self.part: self.vae}

    def units(self) -> list[nn.Module]:
        encoder, decoder = self.vae.encoder, self.vae.decoder
        return [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]

    def _measure(self, latents: Tensor) -> None:
        number = latents.new_tensor(latents.numel())
        self.batch_moments += torch.stack([number, latents.sum(), latents.square().sum()]).float()
