"""Assembly of a model folder from parts that people have on disk; what they lack is untrained."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import nn

from videolavit.progress import OnProgress, Progress, ignore_progress
from videolavit.vocabulary import Vocabulary

from ..checkpoint.new_folder import new_folder
from ..config import ModelConfig, OutputSizes
from ..folder import ModelFolder
from ..language_model import byte_tokenizer
from ..model_file import ModelFacts, finish_model_folder
from ..network import CONFIG, STRICT, ModelError, read_json
from ..part_files import save_part
from ..parts import PARTS, build_part
from ..presets import load_config
from ..quiet import quiet_libraries
from ..video_detokenizer import VideoSettings
from .diffusion import find_image_diffusion, find_video_diffusion, pooled_size, silence
from .found import FoundPart, PartReport, is_model
from .language_model import Backbone, grow, read_backbone
from .tokenizers import find_tokenizer, with_projection

ASSEMBLE_STAGE = "assemble"
REPORT_FILE = "assembly.json"
"""Names of the tensors that were taken, widened, new and left over, by part, in an assembled model."""

_LANGUAGE = "language_model"
_SAME = {"understanding/language_model": _LANGUAGE, "understanding/motion_tokenizer": "motion_tokenizer"}
"""Parts of understanding that begin as a part of generation."""

_DETOKENIZERS = {"keyframe_detokenizer": "keyframe", "video_detokenizer": "video"}


@settings_dataclass(frozen=True, kw_only=True, config=STRICT)
class AssembleSettings:
    """Weights to start from. A part that is not named is untrained.

    Args:
        language_model: Folder of any causal language model of `transformers`, or a GGUF file.
        visual_tokenizer: Folder in LaVIT's published layout; or a model, or the folder of its visual tokenizer.
        motion_tokenizer: Folder of a motion tokenizer; or a model, or a preset for an untrained one of its size.
        image_diffusion: Folder of `diffusers` in SDXL's layout; or a model.
        video_diffusion: Folder of `diffusers` in the layout of Stable Video Diffusion; or a model.
        like: Sizes of the untrained parts: a preset, or a YAML file of the same form. Sizes that follow from a given
            part are taken from that.
    """

    language_model: str | None = None
    visual_tokenizer: str | None = None
    motion_tokenizer: str | None = None
    image_diffusion: str | None = None
    video_diffusion: str | None = None
    like: str = "small"


@dataclass(frozen=True)
class AssembleSummary:
    """Result of `assemble`.

    Args:
        folder: Model folder.
        vocabulary: Layout of the language model's ids.
        reports: Origin of the tensors of each part, by its name.
        remarks: Lines for the user.
    """

    folder: Path
    vocabulary: Vocabulary
    reports: Mapping[str, PartReport]
    remarks: tuple[str, ...] = ()


def assemble(
    target: str | os.PathLike[str],
    settings: AssembleSettings | None = None,
    on_progress: OnProgress = ignore_progress,
) -> AssembleSummary:
    """Makes a model folder from given weights. Everything is read and checked before the folder is written.

    Args:
        target: New model folder. It appears when it is complete.
        settings: Weights to start from.
        on_progress: Receives the number of parts written so far.

    Raises:
        ModelError: a source is missing, cannot be read or does not fit; the message names its tensors. Or the target
            has content.
        OSError: a file cannot be written.
    """
    settings = settings or AssembleSettings()
    like = load_config(settings.like)
    on_progress(Progress(ASSEMBLE_STAGE, message="reading the given parts"))
    with quiet_libraries():
        backbone = read_backbone(Path(settings.language_model)) if settings.language_model is not None else None
        found = _find(settings, like)
    config = _fitted(like, found, backbone)
    found[_LANGUAGE] = _language_model(config, backbone)
    remarks: list[str] = []
    with new_folder(Path(target), 0, remarks) as folder:
        reports: dict[str, PartReport] = {}
        trained: list[str] = []
        for number, part in enumerate(PARTS, 1):
            source = _SAME.get(part)
            if source is not None:
                shutil.copytree(folder / source, folder / part, copy_function=_link)
                reports[part] = reports[source]
            else:
                written = found.get(part) or _made(part, config, folder, found)
                with quiet_libraries():
                    written.write(folder / part)
                reports[part] = written.report
            if (source or part) in found and found[source or part].is_trained:
                trained.append(part)
            on_progress(Progress(ASSEMBLE_STAGE, number, len(PARTS), part))
        if "visual_tokenizer" in trained:
            trained.append("understanding/visual_tokenizer")
        content = {part: asdict(report) for part, report in reports.items()}
        (folder / REPORT_FILE).write_text(json.dumps(content, indent=1) + "\n")
        facts = ModelFacts(
            sizes=_sizes(_sizes_of_models(config.sizes, settings), folder),
            trained=trained,
            vocabulary=config.vocabulary,
            generation=_generation_of_models(settings),
        )
        finish_model_folder(folder, facts)
    return AssembleSummary(Path(target), config.vocabulary, reports, tuple(remarks))


def _find(settings: AssembleSettings, like: ModelConfig) -> dict[str, FoundPart]:
    """Finds the given parts, but for the language model."""
    found: dict[str, FoundPart] = {}
    for part, location in (
        ("visual_tokenizer", settings.visual_tokenizer),
        ("motion_tokenizer", settings.motion_tokenizer),
    ):
        if location is not None:
            found[part] = find_tokenizer(location, part, like)
    if settings.image_diffusion is not None:
        found |= find_image_diffusion(settings.image_diffusion)
    if settings.video_diffusion is not None:
        found |= find_video_diffusion(settings.video_diffusion)
    return found


def _fitted(like: ModelConfig, found: Mapping[str, FoundPart], backbone: Backbone | None) -> ModelConfig:
    """Fits the sizes of the untrained parts to the given ones. Raises ModelError if given parts do not fit together."""

    def given(part: str, otherwise: Any) -> Any:
        return found[part].config if part in found else otherwise

    language = like.language_model
    if backbone is not None:
        language = replace(language, text_size=backbone.text_size, hidden_size=backbone.hidden_size)
    visual = replace(given("visual_tokenizer", like.visual_tokenizer), features_dim=language.hidden_size)
    keyframe, video = like.keyframe_detokenizer, like.video_detokenizer
    conditions, unet = keyframe.conditions, keyframe.unet
    if "keyframe_detokenizer/conditions" in found:  # a model brings the U-Net that reads them too
        conditions = found["keyframe_detokenizer/conditions"].config
        unet = replace(unet, cross_attention_dim=sum(conditions.context_dims), pooled_dim=conditions.pooled_dim)
    else:
        if "keyframe_detokenizer/unet" in found:
            values = found["keyframe_detokenizer/unet"].config
            unet = replace(unet, cross_attention_dim=values["cross_attention_dim"], pooled_dim=pooled_size(values))
        first = unet.cross_attention_dim * 3 // 8  # published: 768 of 2048
        conditions = replace(
            conditions,
            num_codes=visual.num_codes,
            code_dim=visual.code_dim,
            max_codes=visual.num_patches,
            feature_dim=visual.width,
            context_dims=(first, unet.cross_attention_dim - first),
            pooled_dim=unet.pooled_dim,
        )
    video_unet = given("video_detokenizer/unet", video.unet)
    encoder = given(
        "video_detokenizer/motion_encoder", replace(video.motion_encoder, out_channels=video_unet.cross_attention_dim)
    )
    try:
        return replace(
            like,
            visual_tokenizer=visual,
            motion_tokenizer=given("motion_tokenizer", like.motion_tokenizer),
            keyframe_detokenizer=replace(keyframe, conditions=conditions, unet=unet),
            video_detokenizer=replace(video, motion_encoder=encoder, unet=video_unet),
            language_model=language,
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ModelError(f"the given parts do not fit together: {problem}") from None


def _language_model(config: ModelConfig, backbone: Backbone | None) -> FoundPart:
    """Grows the given language model, or builds an untrained one."""
    if backbone is None:
        network = build_part(_LANGUAGE, config)
        tokenizer = byte_tokenizer(config.language_model.max_positions)
        if len(tokenizer) != config.language_model.text_size:
            raise ModelError("an untrained language model of this size has no text tokenizer; name a language model")
        report = PartReport(new=tuple(network.state_dict()))
        return FoundPart(partial(_write_language_model, network, tokenizer), report, is_trained=False)
    network, tokenizer = backbone.network, backbone.tokenizer
    grown = grow(backbone, config.vocabulary.size)
    taken = tuple(name for name in network.state_dict() if name not in grown)
    report = PartReport(taken=taken, widened=grown, left_over=backbone.left_over)
    return FoundPart(partial(_write_language_model, network, tokenizer), report)


def _write_language_model(network: Any, tokenizer: Any, folder: Path) -> None:
    save_part(network, folder)
    tokenizer.save_pretrained(folder)


def _made(part: str, config: ModelConfig, folder: Path, found: Mapping[str, FoundPart]) -> FoundPart:
    """Makes an untrained part, or one that begins as another part of the folder."""
    if part == "understanding/visual_tokenizer":
        return with_projection(folder / "visual_tokenizer", config.language_model.hidden_size)
    module = build_part(part, config)
    if f"{part.split('/')[0]}/unet" in found:  # which starts as the one that it comes from
        silence(module)
    names = tuple(module.state_dict()) if isinstance(module, nn.Module) else ()
    return FoundPart(partial(save_part, module), PartReport(new=names), is_trained=False)


def _sizes_of_models(sizes: OutputSizes, settings: AssembleSettings) -> OutputSizes:
    """Replaces default sizes by those of the models that detokenizers come from: they were trained at these."""
    values = asdict(sizes)
    for kind, location in (("keyframe", settings.image_diffusion), ("video", settings.video_diffusion)):
        if location is not None and is_model(location):
            theirs = asdict(ModelFolder(location).sizes)
            values |= {name: value for name, value in theirs.items() if name.startswith(kind)}
    return OutputSizes(**values)


def _generation_of_models(settings: AssembleSettings) -> dict[str, Any]:
    """Settings of generation that suit given parts, from the models that these come from."""
    of_parts = (
        (settings.visual_tokenizer, ("min_visual", "max_visual")),
        (settings.image_diffusion, ("keyframe_steps", "keyframe_guidance")),
        (settings.video_diffusion, tuple(field.name for field in fields(VideoSettings))),
    )
    taken: dict[str, Any] = {}
    for location, names in of_parts:
        if location is not None and is_model(location):
            theirs = ModelFolder(location).facts.generation
            taken |= {name: theirs[name] for name in names if name in theirs}
    return taken


def _sizes(sizes: OutputSizes, folder: Path) -> OutputSizes:
    """Raises default sizes to multiples that the networks in a folder can make."""
    rounded = {}
    for unit, kind in _DETOKENIZERS.items():
        levels = [len(read_json(folder / unit / name / CONFIG)["block_out_channels"]) - 1 for name in ("vae", "unet")]
        multiple = 1 << sum(levels)
        for side in ("width", "height"):
            rounded[f"{kind}_{side}"] = -(-getattr(sizes, f"{kind}_{side}") // multiple) * multiple
    return OutputSizes(**rounded)


def _link(source: str, target: str) -> None:
    """Hard-links a file where the disk can, and copies it elsewhere. Files of models are never changed in place."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
