"""Keyframe detokenizer: visual codes to a picture."""

from .conditions import ConditionDecoder, ConditionDecoderConfig
from .config import KeyframeDetokenizerConfig, KeyframeUNetConfig, ddim_scheduler
from .detokenizer import Conditions, KeyframeDetokenizer, Start

__all__ = [
    "ConditionDecoder",
    "ConditionDecoderConfig",
    "Conditions",
    "KeyframeDetokenizer",
    "KeyframeDetokenizerConfig",
    "KeyframeUNetConfig",
    "Start",
    "ddim_scheduler",
]
