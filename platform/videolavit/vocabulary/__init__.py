"""Token ids of text, images and motion, and sequences of them."""

from .conversation import IMAGE, VIDEO, begin_id, chat_prompt, conversation, fewest_tokens, stop_ids, stop_strings
from .layout import Vocabulary

__all__ = [
    "IMAGE",
    "VIDEO",
    "Vocabulary",
    "begin_id",
    "chat_prompt",
    "conversation",
    "fewest_tokens",
    "stop_ids",
    "stop_strings",
]
