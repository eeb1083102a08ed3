"""Visual codes to a picture."""

from .conditions import ConditionDecoder, ConditionDecoderConfig
from .config import KeyframeUNetConfig, VAEConfig, ddim_scheduler
from .detokenizer import Conditions, KeyframeDetokenizer, Start

__all__ = [
    "ConditionDecoder",
    "ConditionDecoderConfig",
    "Conditions",
    "KeyframeDetokenizer",
    "KeyframeUNetConfig",
    "Start",
    "VAEConfig",
    "ddim_scheduler",
]
