"""The unified language model."""

from .config import LanguageModelConfig
from .tokenizer import byte_tokenizer
from .understanding import NO_LABEL, PromptBatch, UnderstandingModel, VisualPrompts

__all__ = [
    "NO_LABEL",
    "LanguageModelConfig",
    "PromptBatch",
    "UnderstandingModel",
    "VisualPrompts",
    "byte_tokenizer",
]
