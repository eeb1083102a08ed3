"""Assembled models of several families: they train, continue bit for bit, generate and answer."""

from pathlib import Path

import pytest
import torch

from tests.models.backbones import write_backbone
from tests.training.token_runs import random_rows, write_run
from videolavit.generation.decoding import DecodeBatch, embed_prompts
from videolavit.generation.describe import DescribeSettings, Question, answer
from videolavit.generation.program import TokensRequest
from videolavit.generation.runtime import Runtime, RuntimeSettings
from videolavit.generation.settings import GenerateSettings
from videolavit.generation.token_generator import TokenGenerator, TokenGrammar
from videolavit.models.assembly import AssembleSettings, assemble
from videolavit.models.folder import ModelFolder
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.parallel import Ranks
from videolavit.training.run import TrainTask, train_rank
from videolavit.training.settings import TrainInputs, TrainSettings
from videolavit.training.trainer import Stopped

FAMILIES = (
    "llama",
    "qwen 2, tied and padded",
    "mistral with a window",
    "gemma 3, tied",
    "phi, with a bias in its head",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_assembled_model_trains_continues_and_generates(family: str, tmp_path: Path) -> None:
    source = write_backbone(tmp_path / "source", family)
    model = ModelFolder(assemble(tmp_path / "model", AssembleSettings(language_model=str(source), like="tiny")).folder)
    tokens = write_run(tmp_path / "tokens", model, random_rows(model, 12))

    def train(name: str, stop: bool = False) -> Path:
        task = TrainTask(
            "language-model",
            str(model.path),
            TrainInputs(train=[str(tokens)]),
            LanguageModelTraining(sequence_length=192, show_captions=0),
            TrainSettings(steps=2, batch=2, micro_batch=2, log_every=1, trackers=()),
            str(tmp_path / name),
        )
        return train_rank(task, Ranks(), should_stop=lambda: stop)

    with pytest.raises(Stopped):
        train("cut", stop=True)
    trained, whole = ModelFolder(train("cut")), ModelFolder(train("whole"))
    assert trained.digest("language_model") == whole.digest("language_model") != model.digest("language_model")
    assert trained.vocabulary == model.vocabulary
    network = trained.load("language_model")
    is_tied = network.get_input_embeddings().weight is network.get_output_embeddings().weight
    assert is_tied == network.config.tie_word_embeddings

    runtime = Runtime(trained, RuntimeSettings(device="cpu"))
    grammar = TokenGrammar(trained, trained.text_tokenizer(), GenerateSettings())
    request = TokensRequest(["a star moves"], 0, clips=1)
    with runtime.use("language_model") as loaded:
        (codes,) = TokenGenerator(loaded, grammar).generate([request])
    assert codes[0].motion is not None
    assert len(codes[0].motion) == trained.motion_tokens
    (text,) = answer(runtime, [Question(("What moves?",))], DescribeSettings(max_tokens=12))
    assert "<|" not in text


def test_windows_hold_while_tokens_are_added(tmp_path: Path) -> None:
    """Rows of different lengths, decoded token by token beyond the window, have the logits of one forward."""
    source = write_backbone(tmp_path / "source", "mistral with a window")
    model = ModelFolder(assemble(tmp_path / "model", AssembleSettings(language_model=str(source), like="tiny")).folder)
    network = model.load("language_model")
    ids = torch.arange(3, 83)
    prompts = [ids[:30].tolist(), ids[20:40].tolist()]
    batch = DecodeBatch(network, embed_prompts(network, prompts))
    for step in range(20):
        added = [int(ids[30 + step]), int(ids[40 + step])]
        batch.append_tokens(added)
        prompts = [[*row, token] for row, token in zip(prompts, added, strict=True)]
    with torch.no_grad():
        expected = [network(torch.tensor([row])).logits[0, -1] for row in prompts]
    torch.testing.assert_close(batch.logits, torch.stack(expected), rtol=1e-4, atol=1e-5)
