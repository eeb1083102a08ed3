"""Typed settings of whole models, and the presets."""

from .model import PRESETS, ModelConfig, load_preset

__all__ = ["PRESETS", "ModelConfig", "load_preset"]
