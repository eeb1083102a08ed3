"""A keyframe and motion to the frames of a clip."""

from .detokenizer import VideoDetokenizer, VideoSettings, edm_scheduler
from .motion_condition import MotionConditionEncoder, MotionConditionEncoderConfig
from .unet import MotionUNet, MotionUNetConfig

__all__ = [
    "MotionConditionEncoder",
    "MotionConditionEncoderConfig",
    "MotionUNet",
    "MotionUNetConfig",
    "VideoDetokenizer",
    "VideoSettings",
    "edm_scheduler",
]
