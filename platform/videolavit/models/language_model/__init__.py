"""The unified language model."""

from .config import LanguageModelConfig
from .tokenizer import byte_tokenizer
from .understanding import NO_LABEL, PromptBatch, UnderstandingModel

__all__ = ["NO_LABEL", "LanguageModelConfig", "PromptBatch", "UnderstandingModel", "byte_tokenizer"]
