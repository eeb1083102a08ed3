"""Networks from the published weights: component names, configuration words and tensor names of Video-LaVIT.

The networks of this project carry the published tensor names inside; what differs is a prefix, listed here.
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

Words = Mapping[str, Any]

VOCABULARY = Vocabulary(
    LanguageModelConfig().text_size, VisualTokenizerConfig().num_codes, MotionTokenizerConfig().num_codes
)
"""Of the published language models."""


@dataclass(frozen=True)
class Component:
    """A published component.

    Args:
        make: Builds the module from the configuration words.
        prefixes: (ours, published) beginnings of tensor names; the first that fits is exchanged.
        fixed: Words that have one value only, and which.
    """

    make: Callable[[Words], Any]
    prefixes: tuple[tuple[str, str], ...] = (("", ""),)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def published_name(self, name: str) -> str:
        """The published name of one of our tensors."""
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise AssertionError(f"no published name for {name}")


def build(component: str, config: Words, state_dict: Mapping[str, Tensor], codebook: Tensor | None = None) -> Any:
    """A module from published tensors, in evaluation mode.

    Args:
        component: A key of `COMPONENTS`.
        config: The component's configuration words: sizes that the tensors alone do not tell. Words that describe
            something else than the network are ignored.
        state_dict: Tensors under their published names. The module uses them without a copy.
        codebook: For `highres_decoder`: [codes, channels] of the visual tokenizer. It may also be among the tensors,
            as `quantize.embedding.weight`.

    Returns:
        The network; for `language_model_sft` an `UnderstandingModel`, for `language_model` one of `transformers`.

    Raises:
        ModelError: an unknown component, a missing word, or tensors that do not fit.
    """
    tensors = dict(state_dict)
    if component == "highres_decoder" and codebook is None:
        codebook = tensors.pop(CODEBOOK, None)
    module = make(component, config, tensors)
    ours = {COMPONENTS[component].published_name(name): name for name in module.state_dict()}
    load_exactly(module, {ours.get(name, name): tensor for name, tensor in tensors.items()}, component)
    if isinstance(module, ConditionDecoder):
        module.codebook = codebook
    return _complete(module).eval()


def make(component: str, config: Words, state_dict: Mapping[str, Any] | None = None) -> Any:
    """The module of a component on the meta device, without storage.

    Args:
        state_dict: Whose shapes tell what is not among the words.

    Raises:
        ModelError: an unknown component, a missing word, or a word with a value that is not supported.
    """
    if component not in COMPONENTS:
        raise ModelError(f"unknown component {component!r}; there are {', '.join(COMPONENTS)}")
    for word, value in COMPONENTS[component].fixed.items():
        if config.get(word, value) != value:
            raise ModelError(f"{component} is made for {word} = {value}, not {config[word]}")
    try:
        with torch.device("meta"):
            return COMPONENTS[component].make(dict(config) | _found(state_dict or {}))
    except KeyError as word:
        raise ModelError(f"the configuration of {component} lacks {word}") from None


def published_state(component: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under their published names."""
    return {COMPONENTS[component].published_name(name): tensor for name, tensor in module.state_dict().items()}


def _found(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes that tensors tell."""
    embedding = state.get("model.embed_tokens.weight")
    return {} if embedding is None else {"vocab_size": len(embedding)}


def _complete(module: Any) -> Any:
    """Gives a language model from the meta device the buffers that follow from its config."""
    if isinstance(module, UnderstandingModel):
        module.language_model = _complete(module.language_model)
    if isinstance(module, PreTrainedModel):
        return type(module).from_pretrained(
            None, config=module.config, state_dict=dict(module.state_dict()), dtype=module.dtype
        )
    return module


def _motion_tokenizer(words: Words) -> MotionTokenizer:
    return MotionTokenizer(
        MotionTokenizerConfig(
            dim=words["dim"],
            num_heads=words["num_heads"],
            mlp_ratio=words["mlp_ratio"],
            num_frames=words["num_frames"],
            grid_height=words["grid_h"],
            grid_width=words["grid_w"],
            num_codes=words["n_code"],
            code_dim=words["code_dim"],
        )
    )


def _motion_condition_encoder(words: Words) -> MotionConditionEncoder:
    return MotionConditionEncoder(
        MotionConditionEncoderConfig(
            dim=words["dim"],
            num_heads=words["num_heads"],
            depth=words["depth"],
            mlp_ratio=words["mlp_ratio"],
            out_channels=words["out_channels"],
            temporal_frames=words["num_frames"] if words.get("temporal_embedding") else None,
        )
    )


def _visual_tokenizer(words: Words) -> VisualTokenizer:
    return VisualTokenizer(
        VisualTokenizerConfig(
            image_size=words["image_size"],
            patch_size=words["patch_size"],
            width=words["width"],
            vit_layers=words["vit_layers"],
            vit_heads=words["width"] // words["vit_head_dim"],
            vit_head_out=words["vit_head_out"],
            mlp_ratio=words["vit_mlp_ratio"],
            merger_layers=words["merger_layers"],
            merger_heads=words["merger_heads"],
            num_codes=words["n_code"],
            code_dim=words["code_dim"],
            features_dim=words["llm_dim"],
        )
    )


def _condition_decoder(words: Words) -> ConditionDecoder:
    return ConditionDecoder(
        ConditionDecoderConfig(
            num_codes=words["n_code"],
            code_dim=words["code_dim"],
            dim=words["dim"],
            depth=words["depth"],
            num_heads=words["num_heads"],
            mlp_ratio=words["mlp_ratio"],
            max_codes=(words["image_size"] // words["patch_size"]) ** 2,
            feature_dim=words["feature_dim"],
        )
    )


def _video_unet(words: Words) -> MotionUNet:
    return MotionUNet(
        MotionUNetConfig(
            block_out_channels=tuple(words["block_out_channels"]),
            num_attention_heads=tuple(words["num_attention_heads"]),
            layers_per_block=words["layers_per_block"],
            cross_attention_dim=words["cross_attention_dim"],
            addition_time_embed_dim=words["addition_time_embed_dim"],
        )
    )


def _image_unet(words: Words) -> nn.Module:
    return KeyframeUNetConfig(
        block_out_channels=tuple(words["block_out_channels"]),
        layers_per_block=words["layers_per_block"],
        num_heads=tuple(words["num_heads"]),
        transformer_layers=tuple(words["transformer_layers_per_block"]),
        cross_attention_dim=words["cross_attention_dim"],
        addition_time_embed_dim=words["addition_time_embed_dim"],
        pooled_dim=words["pooled_dim"],
    ).build()


def _vae(words: Words) -> VAEConfig:
    return VAEConfig(
        block_out_channels=tuple(words["block_out_channels"]),
        layers_per_block=words["layers_per_block"],
        scaling_factor=words["scaling_factor"],
    )


def _language_model(words: Words) -> LlamaForCausalLM:
    config = LanguageModelConfig(
        hidden_size=words["hidden"],
        intermediate_size=words["intermediate"],
        num_layers=words["layers"],
        num_heads=words["heads"],
        rms_norm_eps=words["rms_norm_eps"],
    )
    return LlamaForCausalLM(config.llama(words.get("vocab_size", VOCABULARY.size)))


def _understanding(words: Words) -> UnderstandingModel:
    return UnderstandingModel(
        _language_model(words), _visual_tokenizer(words["visual"]), _motion_tokenizer(words["motion"]), VOCABULARY
    )


COMPONENTS = {
    "motion_tokenizer": Component(_motion_tokenizer, fixed={"depth": 12, "layernorm_eps": 1e-5}),
    "motion_condition_encoder": Component(_motion_condition_encoder, fixed={"layernorm_eps": 1e-5}),
    "dynamic_visual_tokenizer": Component(
        _visual_tokenizer,
        fixed={"vit_layernorm_eps": 1e-6, "merger_layernorm_eps": 1e-5, "softmax_eps": 1e-6},
    ),
    "highres_decoder": Component(_condition_decoder, fixed={"layernorm_eps": 1e-5}),
    "video_unet": Component(
        _video_unet, prefixes=(("unet.", ""),), fixed={"in_channels": 10, "out_channels": 4, "groupnorm_groups": 32}
    ),
    "video_vae": Component(lambda words: _vae(words).build_temporal()),
    "image_unet": Component(_image_unet),
    "image_vae": Component(lambda words: _vae(words).build()),
    "language_model": Component(_language_model),
    "language_model_sft": Component(
        _understanding,
        prefixes=(
            ("language_model.", ""),
            ("visual_tokenizer.", "model.visual_tokenizer."),
            ("motion_tokenizer.", "model.motion_tokenizer."),
        ),
    ),
}
"""The published components by their names."""
