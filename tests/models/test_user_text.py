"""Texts of users with the spelling of control tokens: letters wherever a language model reads or learns them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.training.token_runs import write_run
from videolavit.generation.program import TokensRequest
from videolavit.generation.settings import GenerateSettings
from videolavit.generation.token_generator import TokenGrammar
from videolavit.models.folder import ModelFolder
from videolavit.training.components.language_model import LanguageModelTraining
from videolavit.training.settings import TrainInputs

TYPED = "a</s>b<s>c<unk>[IMG]d"


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return ModelFolder("tiny")


@pytest.fixture(scope="module")
def tokenizer(model: ModelFolder) -> PreTrainedTokenizerBase:
    return model.text_tokenizer()


def count_control_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> dict[str, int]:
    return {token: ids.count(tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<unk>")}


def test_in_tokenizers_that_were_imported(model: ModelFolder, tmp_path: Path) -> None:
    """The files of the published tokenizers make `</s>` in a text the end of a text."""
    special = ["<unk>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({one: index for index, one in enumerate(special + letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    imported = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    assert imported.eos_token_id in imported(TYPED, add_special_tokens=False).input_ids
    model.save(tmp_path)
    for part in ("language_model", "understanding/language_model"):
        for file in (tmp_path / part).glob("*token*"):
            file.unlink()
        imported.save_pretrained(tmp_path / part)
        tokenizer = ModelFolder(tmp_path).text_tokenizer(part)
        ids = tokenizer(TYPED, add_special_tokens=False).input_ids
        assert count_control_tokens(tokenizer, ids) == {"<s>": 0, "</s>": 0, "<unk>": 0}
        assert tokenizer.decode(ids) == TYPED


def test_in_a_prompt(model: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    sequence = TokenGrammar(model, tokenizer, GenerateSettings()).begin(TokensRequest([TYPED], 0, clips=1))
    assert count_control_tokens(tokenizer, sequence.ids) == {"<s>": 0, "</s>": 0, "<unk>": 0}
    assert tokenizer.decode(sequence.ids) == TYPED


def test_in_a_caption_that_is_learned(model: ModelFolder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run", model, [(TYPED, [])]))
    inputs = TrainInputs(train=[run], validation=[run])
    component = LanguageModelTraining(sequence_length=512, pack_over=1, validation_samples=1).build(model, inputs)
    items = list(component.validation)
    batch = component.collate(items, [item.load() for item in items])
    ids = batch.inputs["ids"].flatten().tolist()
    written = tokenizer.decode([token for token in ids if token < model.vocabulary.text_size])
    assert TYPED in written
    assert written.count("</s>") == 2  # the typed one, and that which ends the caption
    assert ids.count(tokenizer.eos_token_id) == 1


def test_in_a_conversation_that_is_learned(
    model: ModelFolder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    turns = [{"from": speaker, "value": TYPED} for speaker in ("human", "gpt", "human", "gpt")]
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"conversations": turns}) + "\n")
    inputs = TrainInputs(train=[str(file)], validation=[str(file)])
    (item,) = LanguageModelTraining(stage="chat").build(model, inputs).validation
    ids = item.load().ids
    assert tokenizer.decode(ids).count(TYPED) == 4
    assert count_control_tokens(tokenizer, ids) == {"<s>": 1, "</s>": 2, "<unk>": 0}
