"""Shapes of a whole model."""

from pydantic import Field
from pydantic.dataclasses import dataclass

from videolavit.vocabulary import Vocabulary

from .keyframe_detokenizer import KeyframeDetokenizerConfig
from .language_model import LanguageModelConfig
from .motion_tokenizer import MotionTokenizerConfig
from .network import STRICT
from .video_detokenizer import VideoDetokenizerConfig
from .visual_tokenizer import VisualTokenizerConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OutputSizes:
    """Sizes of generated pictures and videos where none are asked for, in pixels.

    Args:
        keyframe_width: Picture width.
        keyframe_height: Picture height.
        video_width: Video width.
        video_height: Video height.
    """

    keyframe_width: int = 1024
    keyframe_height: int = 576
    video_width: int = 576
    video_height: int = 320


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Shapes of all networks of a model. The defaults are the published ones.

    Args:
        visual_tokenizer: Shape of the visual tokenizer.
        motion_tokenizer: Shape of the motion tokenizer.
        keyframe_detokenizer: Shapes of the keyframe detokenizer's networks.
        video_detokenizer: Shapes of the video detokenizer's networks.
        language_model: Shape of the language model.
        sizes: Default sizes of generated pictures and videos.
    """

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
        for left, right, names in (
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
            if left != right:
                raise ValueError(f"{names} must be equal, not {left} and {right}")

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            self.language_model.text_size, self.visual_tokenizer.num_codes, self.motion_tokenizer.num_codes
        )
