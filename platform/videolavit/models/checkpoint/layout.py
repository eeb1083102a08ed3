"""Where the published folder `rain1011/Video-LaVIT-v1` keeps what our parts hold (docs/model.md, section 6).

Our networks carry the published tensor names inside, so a rule exchanges prefixes and nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..folder import PARTS
from .tensors import WeightsError

DIFFUSERS_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Rule:
    """Tensors of a source whose names begin with `published` are those of a part that begin with `ours`.

    Args:
        alias: Understood when reading, never written.
    """

    part: str
    published: str = ""
    ours: str = ""
    alias: bool = False


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights, or the shards of one.

    Args:
        folder: Inside the published folder; empty is the folder itself.
        stem: File name without suffix.
        rules: The first whose published prefix fits a tensor's name holds.
        stems: Other names for it.
        suffix: What the published one has.
        is_fallback: Read only for parts of which the other sources have nothing.
        is_sharded: Whether the published one comes in shards.
    """

    folder: str
    stem: str
    rules: tuple[Rule, ...]
    stems: tuple[str, ...] = ()
    suffix: str = ".bin"
    is_fallback: bool = False
    is_sharded: bool = False

    @property
    def path(self) -> str:
        """Of the file in the published layout."""
        return str(Path(self.folder) / (self.stem + self.suffix))

    @property
    def names(self) -> list[str]:
        """File names to look for; what needs no pickle first."""
        return [stem + suffix for suffix in (".safetensors", ".bin") for stem in (self.stem, *self.stems)]

    @property
    def parts(self) -> set[str]:
        return {rule.part for rule in self.rules}

    def rule(self, published: str) -> Rule | None:
        """What holds for a tensor of a published name."""
        return next((rule for rule in self.rules if published.startswith(rule.published)), None)


SOURCES = (
    PublishedFile("", "motion_tokenizer", (Rule("motion_tokenizer"),)),
    PublishedFile("visual_tokenizer", "eva_vitg_psz14", (Rule("visual_tokenizer", ours="encoder."),)),
    PublishedFile("visual_tokenizer", "tokenizer_encoder", (Rule("visual_tokenizer"),)),
    PublishedFile("visual_tokenizer", "highres_tokenizer_decoder", (Rule("keyframe_detokenizer/conditions"),)),
    PublishedFile("image_detokenizer/unet", DIFFUSERS_STEM, (Rule("keyframe_detokenizer/unet"),)),
    PublishedFile("image_detokenizer/vae", DIFFUSERS_STEM, (Rule("keyframe_detokenizer/vae"),), suffix=".safetensors"),
    PublishedFile(
        "video_detokenizer/unet",
        DIFFUSERS_STEM,
        (
            Rule("video_detokenizer/motion_encoder", "motion_encoder."),
            Rule("video_detokenizer/unet", "unet.", "unet.", alias=True),
            Rule("video_detokenizer/unet", ours="unet."),
        ),
    ),
    PublishedFile(
        "",
        "video_3d_unet",
        (
            Rule("video_detokenizer/motion_encoder", "motion_encoder."),
            Rule("video_detokenizer/unet", "unet.", "unet."),
        ),
        is_fallback=True,
    ),
    PublishedFile("video_detokenizer/vae", DIFFUSERS_STEM, (Rule("video_detokenizer/vae"),), suffix=".safetensors"),
    PublishedFile("language_model", "pytorch_model", (Rule("language_model"),), stems=("model",), is_sharded=True),
    PublishedFile(
        "language_model_sft",
        "pytorch_model",
        (
            Rule("understanding/visual_tokenizer", "model.visual_tokenizer."),
            Rule("understanding/motion_tokenizer", "model.motion_tokenizer."),
            Rule("understanding/language_model"),
        ),
        stems=("model",),
        is_sharded=True,
    ),
)
"""Every file of weights.

Generation uses `video_detokenizer/unet`, so that is what is imported; `video_3d_unet` serves the published notebook on
reconstruction, and may come from another training run. It stands in for the motion encoder or the U-Net where the first
file has nothing of it, and never for single tensors.
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
"""Published folder of each part that has a config of its own. The other parts' shapes are not in the files."""

TOKENIZER = ("tokenizer.model", "tokenizer.json")
LANGUAGE_FILES = (
    *TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
"""What lies beside a language model's weights and config, and goes where they go."""


def config_name(part: str) -> str:
    return "scheduler_config.json" if part.endswith("scheduler") else "config.json"


def published_place(part: str, ours: str) -> tuple[PublishedFile, str]:
    """The source that holds one of our tensors in the published layout, and its name there."""
    fitting = [
        (source, rule)
        for source in SOURCES
        for rule in source.rules
        if rule.part == part and ours.startswith(rule.ours) and not rule.alias and not source.is_fallback
    ]
    source, rule = max(fitting, key=lambda pair: len(pair[1].ours))
    return source, rule.published + ours.removeprefix(rule.ours)


def selected_parts(only: Sequence[str] | None) -> list[str]:
    """Parts by their names, or by the folder they are in, such as `understanding`; all of them for None.

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


def sources_of(parts: Iterable[str]) -> list[PublishedFile]:
    """The sources that hold something of the parts, fallbacks last."""
    wanted = set(parts)
    return sorted((source for source in SOURCES if source.parts & wanted), key=lambda source: source.is_fallback)
