"""Motion tokenizer: motion of a clip to codes and back."""

from .network import MotionTokenizer, MotionTokenizerConfig, resize_frames

__all__ = ["MotionTokenizer", "MotionTokenizerConfig", "resize_frames"]
