"""Families of language models in packed training: the loss is that of the model's own forward, or they are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from videolavit.models.errors import ModelError
from videolavit.models.language_model.objective import NextToken
from videolavit.models.objective import Draws

LENGTHS = (120, 60)
SHAPE: dict[str, Any] = {
    "vocab_size": 203,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def made(family: str, config: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, family)(getattr(transformers, config)(**SHAPE, **more))


HONOURED = {
    "llama": made("LlamaForCausalLM", "LlamaConfig"),
    "mistral with a window": made("MistralForCausalLM", "MistralConfig", sliding_window=32),
    "gemma 3 with a window": made("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=16, sliding_window=32),
    "qwen 2 with a window": made(
        "Qwen2ForCausalLM", "Qwen2Config", use_sliding_window=True, sliding_window=32, max_window_layers=0
    ),
    "granite": made("GraniteForCausalLM", "GraniteConfig", logits_scaling=8.0),
    "cohere": made("CohereForCausalLM", "CohereConfig", logit_scale=0.0625),
}


def steep(make: Callable[[], Any]) -> Any:
    """A model whose attention is not flat."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.mul_(4)
    return model


@pytest.mark.parametrize("family", HONOURED)
def test_packed_documents_have_the_loss_of_the_model(family: str) -> None:
    model = steep(HONOURED[family])
    documents = [torch.randint(3, 200, (1, length)) for length in LENGTHS]
    with torch.no_grad():
        own = sum(float(F.cross_entropy(model(one).logits[0, :-1], one[0, 1:], reduction="sum")) for one in documents)
        first, second = LENGTHS
        places = torch.cat([torch.arange(first - 1), torch.arange(first, first + second - 1)])
        ids = torch.cat(documents, dim=1)
        inputs = {
            "ids": ids,
            "positions": torch.cat([torch.arange(length) for length in LENGTHS])[None],
            "places": places,
            "targets": ids[0, places + 1],
            "types": torch.zeros(len(places)),
            "ends": torch.tensor([0, first, first + second], dtype=torch.int32),
        }
        packed = float(NextToken(model)(inputs, Draws(0, [0]))["loss"])
    assert packed == pytest.approx(own, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "packed", "message"),
    [
        (
            made("Gemma2ForCausalLM", "Gemma2Config", head_dim=16, final_logit_softcapping=None),
            True,
            r"Gemma2ForCausalLM has soft caps \(attn_logit_softcapping\)",
        ),
        (
            made("Gemma2ForCausalLM", "Gemma2Config", head_dim=16, attn_logit_softcapping=None),
            False,
            "Gemma2ForCausalLM caps its logits",
        ),
        (
            made("GptOssForCausalLM", "GptOssConfig", head_dim=16, num_local_experts=2, num_experts_per_tok=1),
            True,
            "GptOssForCausalLM has sinks",
        ),
        (
            lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2)),
            True,
            "GPT2LMHeadModel cannot be trained: it has no list of layers",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(make: Callable[[], Any], packed: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        NextToken(make(), packed)
