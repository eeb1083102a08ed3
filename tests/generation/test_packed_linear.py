"""Packed linear layers give the results of ordinary ones."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from videolavit.generation.decoding import GREEDY, TokenPolicy, decode, embed_prompts
from videolavit.generation.packed_linear import MIN_WEIGHTS, PackedLinear, pack_linears
from videolavit.generation.runtime import Runtime
from videolavit.models.folder import ModelFolder

needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN")


@needs_mkldnn
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (16,), (3, 77)])
def test_a_packed_layer_gives_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 160, bias=bias), torch.randn(*shape, 96)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x), atol=1e-5, rtol=1e-5)


@needs_mkldnn
def test_a_packed_language_model_generates_the_same() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_hidden_layers=2, **sizes)).eval()
    policy, prompts = TokenPolicy((range(100),), 99, 20, 20), [[3, 4, 5], [6, 7, 8, 9, 10]]

    def generated() -> list[list[int]]:
        generators = [torch.Generator(), torch.Generator()]
        return decode(model, embed_prompts(model, prompts), policy, [GREEDY] * 2, generators)

    before = generated()
    pack_linears(model)
    assert all(isinstance(layer.mlp.up_proj, PackedLinear) for layer in model.model.layers)
    assert type(model.lm_head) is nn.Linear, f"its {model.lm_head.weight.numel()} weights are fewer than {MIN_WEIGHTS}"
    assert generated() == before


@needs_mkldnn
@pytest.mark.parametrize("unit", ["language_model", "understanding/language_model"])
def test_a_runtime_on_a_cpu_packs_language_models(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videolavit.generation.packed_linear.MIN_WEIGHTS", 1)  # smaller than any layer of the preset
    loaded = Runtime(ModelFolder("tiny")).loaded(unit)
    assert isinstance(loaded.lm_head, PackedLinear)
    assert not isinstance(ModelFolder("tiny").load(unit).lm_head, PackedLinear)
