"""Differences between families of language models that training must honour, or refuses by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WITHIN_DOCUMENTS = {"full_attention", "sliding_attention"}
"""Kinds of layers, as `transformers` calls them, whose attention can be kept within documents."""


def check_trainable(model: PreTrainedModel) -> None:
    """Raises ModelError if a model lacks what training reads, or computes logits in a way that it cannot honour."""
    name = type(model).__name__
    if not hasattr(model.base_model, "layers") or model.get_output_embeddings() is None:
        raise ModelError(f"{name} cannot be trained: it has no list of layers with a head, as Llama has")
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ModelError(f"{name} caps its logits (final_logit_softcapping), which training cannot honour")


def logit_scale(model: PreTrainedModel) -> float:
    """Factor between the results of a model's head and its logits: that of Cohere, or the divisor of Granite."""
    config = model.config.get_text_config()
    return float(getattr(config, "logit_scale", 1.0) or 1.0) / float(getattr(config, "logits_scaling", 1.0) or 1.0)


def has_windows(model: PreTrainedModel) -> bool:
    """Tells whether some layers of a model see a window of the last positions only."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None


def unpackable(model: PreTrainedModel) -> list[str]:
    """Names the parts of a model's attention that attention within documents cannot honour."""
    config = model.config.get_text_config()
    refused = sorted(set(getattr(config, "layer_types", None) or ()) - _WITHIN_DOCUMENTS)
    if getattr(config, "attn_logit_softcapping", None) is not None:
        refused.append("soft caps (attn_logit_softcapping)")
    if any(parameter.endswith("sinks") for parameter, _ in model.named_parameters()):
        refused.append("sinks")
    return refused


def check_packable(model: PreTrainedModel) -> None:
    """Raises ModelError if a model's attention has a part that attention within documents cannot honour."""
    if refused := unpackable(model):
        raise ModelError(
            f"the attention of {type(model).__name__} has {', '.join(refused)}, which packed documents cannot honour; "
            "set packing to false"
        )
