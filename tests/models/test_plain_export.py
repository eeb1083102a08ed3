"""Language model for plain `transformers`: the same logits, and a tokenizer that names the new ids."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from videolavit.models.checkpoint import ExportSettings, WeightsError, export_checkpoint
from videolavit.models.folder import ModelFolder

PLAIN = ExportSettings(layout="transformers")
TEXT = "a large red star moves left fast"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    ModelFolder("tiny").save(folder)
    return ModelFolder(folder)


@pytest.fixture(scope="module")
def exported(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("plain") / "exported"
    summary = export_checkpoint(model.path, target, PLAIN)
    assert [part.name for part in summary.parts] == ["language_model"]
    return target


def test_plain_transformers_computes_the_same(model: ModelFolder, exported: Path) -> None:
    ours = model.load("language_model", dtype=None)
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype="auto").eval()
    assert theirs.dtype == ours.dtype
    ids = torch.arange(3, 200)[None]
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)
    found = theirs.generate(ids, max_new_tokens=3, do_sample=False)
    assert found.shape[1] > ids.shape[1]


def test_the_tokenizer_names_every_id(model: ModelFolder, exported: Path) -> None:
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(exported), model.vocabulary
    assert len(tokenizer) == vocabulary.size
    written = "[IMG]<visual_0><visual_7>[/IMG][MOV]<motion_3>[/MOV]"
    wanted = [*vocabulary.image([0, 7]), *vocabulary.motion([3])]
    assert tokenizer(written, add_special_tokens=False).input_ids == wanted
    assert tokenizer.decode(wanted, skip_special_tokens=False).replace(" ", "") == written
    last = tokenizer.convert_ids_to_tokens(vocabulary.size - 1)
    assert last == f"<motion_{vocabulary.motion_codes - 1}>"


def test_texts_keep_their_ids(model: ModelFolder, exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ours = model.text_tokenizer()(TEXT, add_special_tokens=False).input_ids
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == ours
    assert tokenizer.decode([*ours, *model.vocabulary.image([1])], skip_special_tokens=True).strip() == TEXT


@pytest.mark.parametrize("only", [("motion_tokenizer",), ("language_model", "understanding/language_model")])
def test_anything_but_one_language_model_is_refused(model: ModelFolder, tmp_path: Path, only: tuple[str, ...]) -> None:
    with pytest.raises(WeightsError, match="this layout holds one language model"):
        export_checkpoint(model.path, tmp_path / "new", ExportSettings(layout="transformers", only=only))
    assert not (tmp_path / "new").exists()
