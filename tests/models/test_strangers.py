"""Model folders of strangers: nothing in them chooses code, other files, or an answer to a question."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.published_folder import make_published
from videolavit.models.checkpoint.expected import expected_part
from videolavit.models.config import ModelConfig
from videolavit.models.folder import ModelFolder
from videolavit.models.network import ModelError
from videolavit.models.part_files import read_part

LANGUAGE, VAE, SCHEDULER = "language_model", "keyframe_detokenizer/vae", "keyframe_detokenizer/scheduler"
STRANGE = {
    "auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"},
    "attn_implementation": "kernels-community/strange",
    "_attn_implementation": "kernels-community/strange",
    "transformers_weights": "other.safetensors",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    ModelFolder("tiny").save(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Model whose folder has a module that a config may name. Whoever asks a question fails the test."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / LANGUAGE / "strange.py").write_text("raise SystemExit('a stranger runs')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_length_of_the_context_is_read_without_code(copied: Path) -> None:
    config = copied / LANGUAGE / "config.json"
    expected = ModelFolder("tiny").context_length
    change(config, **STRANGE)
    assert ModelFolder(copied).context_length == expected
    change(config, model_type="strange")
    with pytest.raises(ModelError, match="holds a 'strange', which is no causal language model"):
        _ = ModelFolder(copied).context_length


def test_entries_of_a_config_choose_nothing(copied: Path) -> None:
    change(copied / LANGUAGE / "config.json", **STRANGE)
    save_file({"model.embed_tokens.weight": torch.zeros(1)}, copied / LANGUAGE / "other.safetensors")
    loaded, ours = read_part(LANGUAGE, copied / LANGUAGE), ModelFolder("tiny").load(LANGUAGE)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    change(copied / VAE / "config.json", quantization_config={"quant_method": "strange"})
    with pytest.raises(ModelError, match=r"vae is quantized \(quantization_config\)"):
        read_part(VAE, copied / VAE)
    change(copied / LANGUAGE / "config.json", quantization_config={"quant_method": "strange"})
    with pytest.raises(ModelError, match=r"are quantised \(quantization_config\)"):
        read_part(LANGUAGE, copied / LANGUAGE)


@pytest.mark.parametrize("name", ["adapter_config.json", "shard-00001-model-00001-of-00001.safetensors"])
def test_files_beside_the_weights_change_no_network(copied: Path, name: str) -> None:
    """PEFT is installed: an adapter beside the weights would be built and applied."""
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    content = json.dumps(adapter | {"megatron_config": {"x": 1}, "megatron_core": "strange"})
    (copied / LANGUAGE / name).write_text(content if name.endswith(".json") else "")
    with pytest.raises(ModelError, match=f"language_model has {name}, which is no file of a language model here"):
        read_part(LANGUAGE, copied / LANGUAGE)


@pytest.mark.parametrize(
    ("part", "file", "values"),
    [
        (LANGUAGE, "config.json", {"num_attention_heads": "x"}),
        (LANGUAGE, "config.json", {"hidden_act": ["x"]}),
        (LANGUAGE, "config.json", {"dtype": "nn"}),
        (LANGUAGE, "config.json", {"rope_parameters": 5}),
        (VAE, "config.json", {"block_out_channels": 5}),
        (VAE, "config.json", {"down_block_types": {"x": None}}),
        (SCHEDULER, "scheduler_config.json", {"num_train_timesteps": "x"}),
        (SCHEDULER, "scheduler_config.json", {"beta_schedule": []}),
    ],
)
def test_values_of_other_types_are_a_mistake_of_the_model(
    copied: Path, part: str, file: str, values: dict[str, Any]
) -> None:
    change(copied / part / file, **values)
    with pytest.raises(ModelError):
        read_part(part, copied / part)


def test_nested_json_is_a_mistake_of_the_model(copied: Path) -> None:
    (copied / "model.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="it is not JSON"):
        _ = ModelFolder(copied).facts


def test_an_import_takes_no_choices_over(tmp_path: Path) -> None:
    published = make_published(tmp_path / "published")
    (config,) = published.glob("language_model/config.json")
    change(config, **STRANGE)
    part = expected_part(LANGUAGE, published, ModelConfig(), {})
    assert not set(STRANGE) & set(part.config)
