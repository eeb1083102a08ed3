"""Token ids of text, images and motion, and sequences of them."""

from .conversation import IMAGE, VIDEO, understanding_prompt
from .layout import Vocabulary

__all__ = ["IMAGE", "VIDEO", "Vocabulary", "understanding_prompt"]
