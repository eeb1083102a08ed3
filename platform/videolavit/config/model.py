"""A model of every part, and its presets `tiny`, `small` and `video-lavit-7b`."""

from importlib import resources

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.models.keyframe_detokenizer import ConditionDecoderConfig, KeyframeUNetConfig, VAEConfig
from videolavit.models.language_model import LanguageModelConfig
from videolavit.models.motion_tokenizer import MotionTokenizerConfig
from videolavit.models.network import STRICT, ModelError, parse_config
from videolavit.models.video_detokenizer import MotionConditionEncoderConfig, MotionUNetConfig
from videolavit.models.visual_tokenizer import VisualTokenizerConfig
from videolavit.vocabulary import Vocabulary

PRESETS = ("tiny", "small", "video-lavit-7b")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KeyframeDetokenizerConfig:
    """The parts of the keyframe detokenizer."""

    conditions: ConditionDecoderConfig = Field(default_factory=ConditionDecoderConfig)
    unet: KeyframeUNetConfig = Field(default_factory=KeyframeUNetConfig)
    vae: VAEConfig = Field(default_factory=VAEConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VideoDetokenizerConfig:
    """The parts of the video detokenizer."""

    motion_encoder: MotionConditionEncoderConfig = Field(default_factory=MotionConditionEncoderConfig)
    unet: MotionUNetConfig = Field(default_factory=MotionUNetConfig)
    vae: VAEConfig = Field(default_factory=lambda: VAEConfig(scaling_factor=0.18215))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputSizes:
    """What a model makes where nothing else is asked for, in pixels.

    Args:
        keyframe_width, keyframe_height: Of a picture.
        video_width, video_height: Of a video.
    """

    keyframe_width: int = 1024
    keyframe_height: int = 576
    video_width: int = 576
    video_height: int = 320


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Shapes of all networks. The defaults are the published ones."""

    visual_tokenizer: VisualTokenizerConfig = Field(default_factory=VisualTokenizerConfig)
    motion_tokenizer: MotionTokenizerConfig = Field(default_factory=MotionTokenizerConfig)
    keyframe_detokenizer: KeyframeDetokenizerConfig = Field(default_factory=KeyframeDetokenizerConfig)
    video_detokenizer: VideoDetokenizerConfig = Field(default_factory=VideoDetokenizerConfig)
    language_model: LanguageModelConfig = Field(default_factory=LanguageModelConfig)
    sizes: OutputSizes = Field(default_factory=OutputSizes)

    def __post_init__(self) -> None:
        visual, conditions = self.visual_tokenizer, self.keyframe_detokenizer.conditions
        motion, video = self.motion_tokenizer, self.video_detokenizer
        context = sum(conditions.context_dims)
        for ours, theirs, what in (
            (conditions.num_codes, visual.num_codes, "conditions.num_codes and visual_tokenizer.num_codes"),
            (conditions.code_dim, visual.code_dim, "conditions.code_dim and visual_tokenizer.code_dim"),
            (conditions.max_codes, visual.num_patches, "conditions.max_codes and the visual tokenizer's patches"),
            (conditions.feature_dim, visual.width, "conditions.feature_dim and visual_tokenizer.width"),
            (context, self.keyframe_detokenizer.unet.cross_attention_dim, "context_dims and unet.cross_attention_dim"),
            (conditions.pooled_dim, self.keyframe_detokenizer.unet.pooled_dim, "the two pooled_dim"),
            (video.motion_encoder.out_channels, video.unet.cross_attention_dim, "motion_encoder and unet contexts"),
            (visual.features_dim, self.language_model.hidden_size, "features_dim and language_model.hidden_size"),
            (motion.num_frames, 24, "motion_tokenizer.num_frames and the clip length"),
        ):
            if ours != theirs:
                raise ValueError(f"{what} must be equal, not {ours} and {theirs}")

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            self.language_model.text_size, self.visual_tokenizer.num_codes, self.motion_tokenizer.num_codes
        )


def load_preset(name: str) -> ModelConfig:
    """The shapes of a preset.

    Raises:
        ModelError: there is none of that name.
    """
    if name not in PRESETS:
        raise ModelError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    text = resources.files("videolavit.config").joinpath("presets", f"{name}.yaml").read_text()
    return parse_config(ModelConfig, yaml.safe_load(text) or {}, f"preset {name}")
