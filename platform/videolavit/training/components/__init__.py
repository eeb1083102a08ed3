"""Registry of training components. Each is a module of this package, imported when it is used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..component import ComponentSettings  # torch takes seconds, and `videolavit train --help` needs none

COMPONENTS = {
    "motion-tokenizer": ("motion_tokenizer:MotionTokenizerTraining", "motion of clips to codes and back"),
    "vision-transformer": (
        "vision_transformer:VisionTransformerTraining",
        "features of pictures that tell the words of their captions",
    ),
    "visual-tokenizer": ("visual_tokenizer:VisualTokenizerTraining", "pictures to codes, and codes to features"),
    "keyframe-detokenizer": ("keyframe_detokenizer:KeyframeDetokenizerTraining", "codes to pictures"),
    "video-detokenizer": ("video_detokenizer:VideoDetokenizerTraining", "a keyframe and motion to frames"),
    "language-model": (
        "language_model:LanguageModelTraining",
        "text, images and videos as one sequence; or chat about them",
    ),
    "vae": ("vae:VAETraining", "the latent spaces of both detokenizers"),
}
"""Name of each component, its settings as `module:class`, and what it trains."""


class UnknownComponent(ValueError):
    """No component has that name."""


def settings_type(component: str) -> "type[ComponentSettings]":
    """Settings class of a component.

    Raises:
        UnknownComponent: no component has that name.
    """
    if component not in COMPONENTS:
        raise UnknownComponent(f"there is no component {component!r}; choose one of {', '.join(COMPONENTS)}")
    module, _, name = COMPONENTS[component][0].partition(":")
    found: type[ComponentSettings] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
