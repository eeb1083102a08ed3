"""Token ids of text, images and motion, and sequences of them."""

from .conversation import IMAGE, VIDEO, chat_prompt, conversation
from .layout import Vocabulary

__all__ = ["IMAGE", "VIDEO", "Vocabulary", "chat_prompt", "conversation"]
