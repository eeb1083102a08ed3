"""Layout of the published folder `rain1011/Video-LaVIT-v1` (docs/model.md, section 6).

The networks of this project keep the published tensor names, so a rule exchanges a prefix and nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..parts import PARTS
from .tensors import WeightsError

DIFFUSERS_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class PrefixRule:
    """Correspondence of tensor names between a published file and a part.

    Args:
        part: Name of the part.
        published: Prefix of the names in the published file.
        ours: Prefix of the names in the part, in place of it.
        alias: True if the rule is for reading only.
    """

    part: str
    published: str = ""
    ours: str = ""
    alias: bool = False


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights, or several shards.

    Args:
        folder: Folder inside the published folder; empty for the published folder itself.
        stem: File name without suffix.
        rules: Rules for its tensors; the first whose published prefix fits applies.
        stems: Other accepted stems.
        suffix: Suffix of the published file.
        is_fallback: True if the file is read only for parts that no other file has.
        is_sharded: True if the file is published in shards.
    """

    folder: str
    stem: str
    rules: tuple[PrefixRule, ...]
    stems: tuple[str, ...] = ()
    suffix: str = ".bin"
    is_fallback: bool = False
    is_sharded: bool = False

    @property
    def path(self) -> str:
        """Path in the published layout."""
        return str(Path(self.folder) / (self.stem + self.suffix))

    @property
    def names(self) -> list[str]:
        """File names to look for, safetensors before pickles."""
        return [stem + suffix for suffix in (".safetensors", ".bin") for stem in (self.stem, *self.stems)]

    @property
    def parts(self) -> set[str]:
        return {rule.part for rule in self.rules}

    def rule(self, published: str) -> PrefixRule | None:
        """Returns the rule for a tensor by its published name."""
        return next((rule for rule in self.rules if published.startswith(rule.published)), None)


PUBLISHED_FILES = (
    PublishedFile("", "motion_tokenizer", (PrefixRule("motion_tokenizer"),)),
    PublishedFile("visual_tokenizer", "eva_vitg_psz14", (PrefixRule("visual_tokenizer", ours="encoder."),)),
    PublishedFile("visual_tokenizer", "tokenizer_encoder", (PrefixRule("visual_tokenizer"),)),
    PublishedFile("visual_tokenizer", "highres_tokenizer_decoder", (PrefixRule("keyframe_detokenizer/conditions"),)),
    PublishedFile("image_detokenizer/unet", DIFFUSERS_STEM, (PrefixRule("keyframe_detokenizer/unet"),)),
    PublishedFile(
        "image_detokenizer/vae", DIFFUSERS_STEM, (PrefixRule("keyframe_detokenizer/vae"),), suffix=".safetensors"
    ),
    PublishedFile(
        "video_detokenizer/unet",
        DIFFUSERS_STEM,
        (
            PrefixRule("video_detokenizer/motion_encoder", "motion_encoder."),
            PrefixRule("video_detokenizer/unet", "unet.", "unet.", alias=True),
            PrefixRule("video_detokenizer/unet", ours="unet."),
        ),
    ),
    PublishedFile(
        "",
        "video_3d_unet",
        (
            PrefixRule("video_detokenizer/motion_encoder", "motion_encoder."),
            PrefixRule("video_detokenizer/unet", "unet.", "unet."),
        ),
        is_fallback=True,
    ),
    PublishedFile(
        "video_detokenizer/vae", DIFFUSERS_STEM, (PrefixRule("video_detokenizer/vae"),), suffix=".safetensors"
    ),
    PublishedFile(
        "language_model", "pytorch_model", (PrefixRule("language_model"),), stems=("model",), is_sharded=True
    ),
    PublishedFile(
        "language_model_sft",
        "pytorch_model",
        (
            PrefixRule("understanding/visual_tokenizer", "model.visual_tokenizer."),
            PrefixRule("understanding/motion_tokenizer", "model.motion_tokenizer."),
            PrefixRule("understanding/language_model"),
        ),
        stems=("model",),
        is_sharded=True,
    ),
)
"""Every file of weights.

Generation uses `video_detokenizer/unet`, which is therefore imported. `video_3d_unet` serves the published notebook on
reconstruction and may come from another training run. It replaces the motion encoder or the U-Net as a whole where the
first file lacks it, and never single tensors.
"""

CONFIG_FOLDERS = {
    "keyframe_detokenizer/unet": "image_detokenizer/unet",
    "keyframe_detokenizer/vae": "image_detokenizer/vae",
    "keyframe_detokenizer/scheduler": "image_detokenizer/scheduler",
    "video_detokenizer/unet": "video_detokenizer/unet",
    "video_detokenizer/vae": "video_detokenizer/vae",
    "video_detokenizer/scheduler": "video_detokenizer/scheduler",
    "language_model": "language_model",
    "understanding/language_model": "language_model_sft",
}
"""Published folder of each part that is published with a config. Shapes of the other parts are in no file."""

TOKENIZER = ("tokenizer.model", "tokenizer.json")
LANGUAGE_FILES = (
    *TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""Files beside a language model's weights and config that are copied with them."""


def config_name(part: str) -> str:
    return "scheduler_config.json" if part.endswith("scheduler") else "config.json"


def published_place(part: str, ours: str) -> tuple[PublishedFile, str]:
    """Returns the published file of one of our tensors, and the tensor's name in it."""
    fitting = [
        (file, rule)
        for file in PUBLISHED_FILES
        for rule in file.rules
        if rule.part == part and ours.startswith(rule.ours) and not rule.alias and not file.is_fallback
    ]
    file, rule = max(fitting, key=lambda pair: len(pair[1].ours))
    return file, rule.published + ours.removeprefix(rule.ours)


def selected_parts(only: Sequence[str] | None) -> list[str]:
    """Finds parts by their names, or by the folder that they are in, such as `understanding`; all of them for None.

    Raises:
        WeightsError: there is no such part.
    """
    if only is None:
        return list(PARTS)
    for name in only:
        if not any(_is_in(part, name) for part in PARTS):
            raise WeightsError(f"a model has no part {name!r}; the parts are {', '.join(PARTS)}")
    return [part for part in PARTS if any(_is_in(part, name) for name in only)]


def _is_in(part: str, name: str) -> bool:
    return part == name or part.startswith(name + "/")


def files_of(parts: Iterable[str]) -> list[PublishedFile]:
    """Returns the files that hold tensors of the parts, fallbacks last."""
    wanted = set(parts)
    return sorted((file for file in PUBLISHED_FILES if file.parts & wanted), key=lambda file: file.is_fallback)
