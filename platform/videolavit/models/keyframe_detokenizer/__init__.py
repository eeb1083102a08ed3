"""Visual codes to a picture."""

from .conditions import ConditionDecoder, ConditionDecoderConfig

__all__ = ["ConditionDecoder", "ConditionDecoderConfig"]
