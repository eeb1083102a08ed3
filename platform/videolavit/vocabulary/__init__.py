"""Token ids of text, images and motion, and the sequences made of them."""

from .conversation import IMAGE, VIDEO, understanding_prompt
from .layout import Vocabulary

__all__ = ["IMAGE", "VIDEO", "Vocabulary", "understanding_prompt"]
