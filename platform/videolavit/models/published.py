"""Networks by the published names of components, configuration values and tensors.

The networks of this project keep the published tensor names; only prefixes differ, and are listed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from videolavit.vocabulary import Vocabulary

from .keyframe_detokenizer import ConditionDecoder, ConditionDecoderConfig, KeyframeUNetConfig
from .language_model import LanguageModelConfig, UnderstandingModel
from .motion_tokenizer import MotionTokenizer, MotionTokenizerConfig
from .network import ModelError, load_exactly
from .quantizer import CODEBOOK
from .vae import VAEConfig
from .video_detokenizer import MotionConditionEncoder, MotionConditionEncoderConfig, MotionUNet, MotionUNetConfig
from .visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

ComponentConfig = Mapping[str, Any]
"""Sizes of a component, under the names of the reference implementation."""

VOCABULARY = Vocabulary(
    LanguageModelConfig().text_size, VisualTokenizerConfig().num_codes, MotionTokenizerConfig().num_codes
)
"""Layout of the ids of the published language models."""


@dataclass(frozen=True)
class PublishedPart:
    """A published component.

    Args:
        make: Builds the module from its configuration.
        prefixes: (ours, published) prefixes of tensor names; the first that fits is replaced.
        fixed: Configuration values that cannot be changed.
    """

    make: Callable[[ComponentConfig], Any]
    prefixes: tuple[tuple[str, str], ...] = (("", ""),)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def published_name(self, name: str) -> str:
        """Returns the published name of one of our tensors."""
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise AssertionError(f"no published name for {name}")


def build_published(
    component: str, config: ComponentConfig, state_dict: Mapping[str, Tensor], codebook: Tensor | None = None
) -> Any:
    """Builds a module from published tensors, in evaluation mode.

    Args:
        component: Name of the component, a key of `PUBLISHED_PARTS`.
        config: Sizes that do not follow from the tensors. Values that do not concern the network are ignored.
        state_dict: Tensors under their published names. The module uses them without copying.
        codebook: Codebook of the visual tokenizer, [codes, channels], for `highres_decoder`. It may also be among the
            tensors, as `quantize.embedding.weight`.

    Returns:
        The network; for `language_model_sft` an `UnderstandingModel`, for `language_model` one of `transformers`.

    Raises:
        ModelError: the component is unknown, a value is missing, or the tensors do not fit.
    """
    tensors = dict(state_dict)
    if component == "highres_decoder" and codebook is None:
        codebook = tensors.pop(CODEBOOK, None)
    module = empty_module(component, config, tensors)
    ours = {PUBLISHED_PARTS[component].published_name(name): name for name in module.state_dict()}
    load_exactly(module, {ours.get(name, name): tensor for name, tensor in tensors.items()}, component)
    if isinstance(module, ConditionDecoder):
        module.codebook = codebook
    return _complete(module).eval()


def empty_module(component: str, config: ComponentConfig, state_dict: Mapping[str, Any] | None = None) -> Any:
    """Builds the module of a component on the meta device, without storage.

    Args:
        component: Name of the component.
        config: Sizes of the component.
        state_dict: Tensors whose shapes provide further sizes.

    Raises:
        ModelError: the component is unknown, or a value is missing or not supported.
    """
    if component not in PUBLISHED_PARTS:
        raise ModelError(f"unknown component {component!r}; there are {', '.join(PUBLISHED_PARTS)}")
    for name, value in PUBLISHED_PARTS[component].fixed.items():
        if config.get(name, value) != value:
            raise ModelError(f"{component} is made for {name} = {value}, not {config[name]}")
    try:
        with torch.device("meta"):
            return PUBLISHED_PARTS[component].make(dict(config) | _found(state_dict or {}))
    except KeyError as name:
        raise ModelError(f"the configuration of {component} lacks {name}") from None


def published_state(component: str, module: nn.Module) -> dict[str, Tensor]:
    """Returns a module's tensors under their published names."""
    return {PUBLISHED_PARTS[component].published_name(name): tensor for name, tensor in module.state_dict().items()}


def _found(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the sizes that follow from tensors."""
    embedding = state.get("model.embed_tokens.weight")
    return {} if embedding is None else {"vocab_size": len(embedding)}


def _complete(module: Any) -> Any:
    """Adds the buffers that follow from its config to a language model from the meta device."""
    if isinstance(module, UnderstandingModel):
        module.language_model = _complete(module.language_model)
    if isinstance(module, PreTrainedModel):
        return type(module).from_pretrained(
            None, config=module.config, state_dict=dict(module.state_dict()), dtype=module.dtype
        )
    return module


def _motion_tokenizer(values: ComponentConfig) -> MotionTokenizer:
    return MotionTokenizer(
        MotionTokenizerConfig(
            dim=values["dim"],
            num_heads=values["num_heads"],
            mlp_ratio=values["mlp_ratio"],
            num_frames=values["num_frames"],
            grid_height=values["grid_h"],
            grid_width=values["grid_w"],
            num_codes=values["n_code"],
            code_dim=values["code_dim"],
        )
    )


def _motion_condition_encoder(values: ComponentConfig) -> MotionConditionEncoder:
    return MotionConditionEncoder(
        MotionConditionEncoderConfig(
            dim=values["dim"],
            num_heads=values["num_heads"],
            depth=values["depth"],
            mlp_ratio=values["mlp_ratio"],
            out_channels=values["out_channels"],
            temporal_frames=values["num_frames"] if values.get("temporal_embedding") else None,
        )
    )


def _visual_tokenizer(values: ComponentConfig) -> VisualTokenizer:
    return VisualTokenizer(
        VisualTokenizerConfig(
            image_size=values["image_size"],
            patch_size=values["patch_size"],
            width=values["width"],
            vit_layers=values["vit_layers"],
            vit_heads=values["width"] // values["vit_head_dim"],
            vit_head_out=values["vit_head_out"],
            mlp_ratio=values["vit_mlp_ratio"],
            merger_layers=values["merger_layers"],
            merger_heads=values["merger_heads"],
            num_codes=values["n_code"],
            code_dim=values["code_dim"],
            features_dim=values["llm_dim"],
        )
    )


def _condition_decoder(values: ComponentConfig) -> ConditionDecoder:
    return ConditionDecoder(
        ConditionDecoderConfig(
            num_codes=values["n_code"],
            code_dim=values["code_dim"],
            dim=values["dim"],
            depth=values["depth"],
            num_heads=values["num_heads"],
            mlp_ratio=values["mlp_ratio"],
            max_codes=(values["image_size"] // values["patch_size"]) ** 2,
            feature_dim=values["feature_dim"],
        )
    )


def _video_unet(values: ComponentConfig) -> MotionUNet:
    return MotionUNet(
        MotionUNetConfig(
            block_out_channels=tuple(values["block_out_channels"]),
            num_attention_heads=tuple(values["num_attention_heads"]),
            layers_per_block=values["layers_per_block"],
            cross_attention_dim=values["cross_attention_dim"],
            addition_time_embed_dim=values["addition_time_embed_dim"],
        )
    )


def _image_unet(values: ComponentConfig) -> nn.Module:
    return KeyframeUNetConfig(
        block_out_channels=tuple(values["block_out_channels"]),
        layers_per_block=values["layers_per_block"],
        num_heads=tuple(values["num_heads"]),
        transformer_layers=tuple(values["transformer_layers_per_block"]),
        cross_attention_dim=values["cross_attention_dim"],
        addition_time_embed_dim=values["addition_time_embed_dim"],
        pooled_dim=values["pooled_dim"],
    ).build()


def _vae(values: ComponentConfig) -> VAEConfig:
    return VAEConfig(
        block_out_channels=tuple(values["block_out_channels"]),
        layers_per_block=values["layers_per_block"],
        scaling_factor=values["scaling_factor"],
    )


def _language_model(values: ComponentConfig) -> LlamaForCausalLM:
    config = LanguageModelConfig(
        hidden_size=values["hidden"],
        intermediate_size=values["intermediate"],
        num_layers=values["layers"],
        num_heads=values["heads"],
        rms_norm_eps=values["rms_norm_eps"],
    )
    return LlamaForCausalLM(config.llama(values.get("vocab_size", VOCABULARY.size)))


def _understanding(values: ComponentConfig) -> UnderstandingModel:
    return UnderstandingModel(
        _language_model(values), _visual_tokenizer(values["visual"]), _motion_tokenizer(values["motion"]), VOCABULARY
    )


PUBLISHED_PARTS = {
    "motion_tokenizer": PublishedPart(_motion_tokenizer, fixed={"depth": 12, "layernorm_eps": 1e-5}),
    "motion_condition_encoder": PublishedPart(_motion_condition_encoder, fixed={"layernorm_eps": 1e-5}),
    "dynamic_visual_tokenizer": PublishedPart(
        _visual_tokenizer,
        fixed={"vit_layernorm_eps": 1e-6, "merger_layernorm_eps": 1e-5, "softmax_eps": 1e-6},
    ),
    "highres_decoder": PublishedPart(_condition_decoder, fixed={"layernorm_eps": 1e-5}),
    "video_unet": PublishedPart(
        _video_unet, prefixes=(("unet.", ""),), fixed={"in_channels": 10, "out_channels": 4, "groupnorm_groups": 32}
    ),
    "video_vae": PublishedPart(lambda values: _vae(values).build_temporal()),
    "image_unet": PublishedPart(_image_unet),
    "image_vae": PublishedPart(lambda values: _vae(values).build()),
    "language_model": PublishedPart(_language_model),
    "language_model_sft": PublishedPart(
        _understanding,
        prefixes=(
            ("language_model.", ""),
            ("visual_tokenizer.", "model.visual_tokenizer."),
            ("motion_tokenizer.", "model.motion_tokenizer."),
        ),
    ),
}
"""Published components by their names."""
