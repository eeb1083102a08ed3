"""Token ids of text, images and motion, and the sequences made of them."""

from .layout import Vocabulary
from .prompts import IMAGE, VIDEO, understanding_prompt

__all__ = ["IMAGE", "VIDEO", "Vocabulary", "understanding_prompt"]
