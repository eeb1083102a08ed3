"""Variational autoencoders between pixels and latents, of pictures and of videos."""

from .config import VAEConfig

__all__ = ["VAEConfig"]
