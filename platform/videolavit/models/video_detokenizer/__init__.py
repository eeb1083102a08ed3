"""Video detokenizer: a keyframe and motion to the frames of a clip."""

from .config import VideoDetokenizerConfig
from .detokenizer import VideoDetokenizer, VideoSettings, edm_scheduler
from .motion_condition import MotionConditionEncoder, MotionConditionEncoderConfig
from .unet import MotionUNet, MotionUNetConfig

__all__ = [
    "MotionConditionEncoder",
    "MotionConditionEncoderConfig",
    "MotionUNet",
    "MotionUNetConfig",
    "VideoDetokenizer",
    "VideoDetokenizerConfig",
    "VideoSettings",
    "edm_scheduler",
]
