"""LoRA adapters as plain PEFT reads them, and merged into the model beside them."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests.training.token_runs import random_rows, write_run
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model.lora import LoRASettings, add_lora, merged
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.parallel import Ranks
from videolavit.training.run import TrainTask, train_rank
from videolavit.training.settings import OptimizerSettings, TrainInputs, TrainSettings

peft = pytest.importorskip("peft", reason="adapters need the extra `lora`")
LORA = LoRASettings(rank=4, alpha=8)
IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pre-training whose adapters, embeddings and head have learned something."""
    folder, model = tmp_path_factory.mktemp("adapters"), ModelFolder("tiny")
    task = TrainTask(
        component="language-model",
        model="tiny",
        inputs=TrainInputs(train=[str(write_run(folder / "tokens", model, random_rows(model, 20), shards=2))]),
        objective=LanguageModelTraining(sequence_length=256, pack_over=16, lora=LORA),
        settings=TrainSettings(
            steps=3,
            batch=2,
            micro_batch=2,
            trackers=(),
            trainable=("*lora_*", "*embed_tokens*", "*lm_head*"),
            optimizer=OptimizerSettings(lr=1e-2),
        ),
        output=str(folder / "run"),
    )
    train_rank(task, Ranks())
    return folder / "run"


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.eval()(IDS).logits
    return found


def test_plain_peft_gives_the_merged_model(trained: Path) -> None:
    base = ModelFolder("tiny").load("language_model")
    before = logits(base)
    ours = logits(ModelFolder(trained / "model").load("language_model"))
    theirs = logits(peft.PeftModel.from_pretrained(base, trained / "adapter"))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (before - ours).abs().max() > 0.01


def test_the_folder_is_that_of_peft(trained: Path) -> None:
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 4, 8)
    assert config["base_model_name_or_path"] is None  # no path of this machine
    assert {one.name for one in (trained / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_biases_beside_adapters_keep_their_names() -> None:
    """Qwen 2 has biases in the projections that get adapters."""
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    network = transformers.Qwen2ForCausalLM(config)
    names = set(network.state_dict())
    add_lora(network, LORA, seed=0)
    assert set(merged(network.state_dict(), LORA.scale)) == names
