"""Model folders: every part as it was saved, digests of what decides results, and what is missing or refused."""

import json
import pickle
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.test_network import Bomb
from videolavit.models.folder import ModelFolder
from videolavit.models.model_file import MODEL_FILE, Examples, finish_model_folder
from videolavit.models.network import ModelError
from videolavit.models.parts import PARTS
from videolavit.training.run import merge_models

WEIGHTS = {"model.safetensors", "diffusion_pytorch_model.safetensors"}
NETWORKS = [part for part in PARTS if not part.endswith("scheduler")]


@pytest.fixture(scope="module")
def tiny() -> ModelFolder:
    return ModelFolder("tiny")


@pytest.fixture(scope="module")
def saved(tiny: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def list_again(folder: Path) -> None:
    """Lists the files of a model as they are now, as somebody could who changes them on purpose."""
    finish_model_folder(folder, ModelFolder(folder).facts)


def weights_of(folder: Path) -> Path:
    (path,) = (path for path in folder.iterdir() if path.name in WEIGHTS)
    return path


@pytest.mark.parametrize("part", NETWORKS)
def test_a_saved_part_is_the_preset_s(tiny: ModelFolder, saved: Path, part: str) -> None:
    ours, theirs = tiny.load(part), ModelFolder(saved).load(part)
    assert isinstance(theirs, nn.Module)
    assert type(theirs) is type(ours)
    assert not theirs.training
    before, after = ours.state_dict(), theirs.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].equal(tensor), name
        assert not after[name].requires_grad
    assert ModelFolder(saved).digest(part) == tiny.digest(part)


@pytest.mark.parametrize("part", sorted(PARTS.keys() - set(NETWORKS)))
def test_a_saved_scheduler_is_the_preset_s(tiny: ModelFolder, saved: Path, part: str) -> None:
    ours, theirs = tiny.load(part), ModelFolder(saved).load(part)
    assert type(theirs) is type(ours)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert theirs.timesteps.equal(ours.timesteps)


def test_facts_of_a_saved_model(tiny: ModelFolder, saved: Path) -> None:
    model = ModelFolder(saved)
    assert model.vocabulary == tiny.vocabulary
    assert model.sizes == tiny.sizes
    assert model.motion_tokens == tiny.motion_tokens == 18
    assert not model.is_trained
    assert not tiny.is_trained
    assert all(model.has(part) for part in PARTS)
    words = "Größe, motion and 動き"
    for part in ("language_model", "understanding/language_model"):
        ids = model.text_tokenizer(part)(words).input_ids
        assert ids == tiny.text_tokenizer(part)(words).input_ids
        assert model.text_tokenizer(part).decode(ids, skip_special_tokens=True) == words


@pytest.mark.parametrize("part", ["language_model", "understanding/language_model"])
def test_control_tokens_in_a_text_are_letters(tiny: ModelFolder, saved: Path, part: str) -> None:
    """In chats, prompts, captions and conversations to train on: all are encoded by these tokenizers."""
    for model in (tiny, ModelFolder(saved)):
        tokenizer = model.text_tokenizer(part)
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        for text in ("a</s>b", "<s>", "<unk> [IMG]"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert not special & set(ids)
            assert max(ids) < model.vocabulary.text_size
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_untrained_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = ModelFolder("tiny").load("motion_tokenizer").state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.rand(3).equal(drawn), "making a part must not disturb the global generator"
    second = ModelFolder("tiny").load("motion_tokenizer").state_dict()
    assert all(second[name].equal(tensor) for name, tensor in first.items())
    other = ModelFolder("tiny").load("understanding/motion_tokenizer").state_dict()
    assert not other["quantize.embedding.weight"].equal(first["quantize.embedding.weight"])


def test_codes_are_looked_up_in_the_visual_tokenizer_s_codebook(tiny: ModelFolder, saved: Path) -> None:
    for model in (tiny, ModelFolder(saved)):
        conditions = model.load("keyframe_detokenizer/conditions")
        assert conditions.codebook.equal(model.load("visual_tokenizer").quantize.embedding.weight)
        assert "codebook" not in conditions.state_dict()


def test_asked_for_dtype(saved: Path) -> None:
    model = ModelFolder(saved)
    for part in ("visual_tokenizer", "keyframe_detokenizer/vae", "language_model", "keyframe_detokenizer/conditions"):
        assert {tensor.dtype for tensor in model.load(part, dtype=torch.bfloat16).state_dict().values()} == {
            torch.bfloat16
        }
    assert model.load("keyframe_detokenizer/conditions", dtype=torch.bfloat16).codebook.dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["motion_tokenizer", "video_detokenizer/vae", "understanding/language_model"])
def test_digest_of_one_changed_weight(saved: Path, copied: Path, part: str) -> None:
    path = weights_of(copied / part)
    state = load_file(path)
    name = max(state)
    state[name].view(-1)[0] += 1e-3
    save_file(state, path, {"format": "pt"})
    assert ModelFolder(copied).digest(part) != ModelFolder(saved).digest(part)


def test_digest_of_a_changed_config(saved: Path, copied: Path) -> None:
    """Equal tensors with another number of heads give other codes."""
    path = copied / "motion_tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_heads": 8}))
    assert ModelFolder(copied).digest("motion_tokenizer") != ModelFolder(saved).digest("motion_tokenizer")


def test_missing_part(copied: Path) -> None:
    shutil.rmtree(copied / "video_detokenizer" / "unet")
    model = ModelFolder(copied)
    assert not model.has("video_detokenizer/unet")
    with pytest.raises(ModelError, match="has no video_detokenizer/unet"):
        model.load("video_detokenizer/unet")
    assert model.load("video_detokenizer/motion_encoder") is not None


def test_part_without_a_codebook(copied: Path) -> None:
    path = weights_of(copied / "visual_tokenizer")
    state = load_file(path)
    del state["quantize.embedding.weight"]
    save_file(state, path)
    list_again(copied)
    with pytest.raises(ModelError, match="has no codebook"):
        ModelFolder(copied).load("keyframe_detokenizer/conditions")


def test_names_that_are_no_part(tiny: ModelFolder, saved: Path) -> None:
    for model in (tiny, ModelFolder(saved)):
        with pytest.raises(ModelError, match=r"no part 'decoder'; the parts are visual_tokenizer, "):
            model.load("decoder")


@pytest.mark.parametrize("location", ["no/such/folder", "", "Tiny"])
def test_not_a_model(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"model\.json is missing"):
        ModelFolder(location)


def test_model_of_another_format(copied: Path) -> None:
    (copied / MODEL_FILE).write_text(json.dumps({"format": "videolavit-9", "sizes": {}, "trained": True}))
    with pytest.raises(ModelError, match="format 'videolavit-9', this version reads"):
        _ = ModelFolder(copied).sizes


def test_every_file_is_listed_with_its_digest(saved: Path) -> None:
    """In the form that `sha256sum` prints."""
    content = json.loads((saved / MODEL_FILE).read_text())
    files = {path.relative_to(saved).as_posix(): path for path in saved.rglob("*") if path.is_file()}
    del files[MODEL_FILE]
    assert content["files"] == {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert content["vocabulary"] == {"text_size": 259, "visual_codes": 512, "motion_codes": 128}


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_file_is_refused(copied: Path, part: str) -> None:
    file = max((copied / part).iterdir())
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=rf"{file.name} is not the file that model.json lists"):
        ModelFolder(copied).load(part)
    file.unlink()
    with pytest.raises(ModelError, match=rf"{file.name}, which model.json lists, cannot be read: No such file"):
        ModelFolder(copied).load(part)


def test_a_damaged_codebook_is_refused(copied: Path) -> None:
    """The condition decoder borrows it from another part."""
    weights_of(copied / "visual_tokenizer").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is not the file that model\.json lists"):
        ModelFolder(copied).load("keyframe_detokenizer/conditions")


def test_the_first_format_is_read(tiny: ModelFolder, copied: Path) -> None:
    """Folders without a vocabulary and digests."""
    content = json.loads((copied / MODEL_FILE).read_text())
    first = {"format": "videolavit-1", "trained": True, "sizes": content["sizes"]}
    (copied / MODEL_FILE).write_text(json.dumps(first))
    model = ModelFolder(copied)
    assert model.vocabulary == tiny.vocabulary
    assert model.trained_parts == list(PARTS)
    assert model.load("motion_tokenizer") is not None


def test_a_model_without_a_language_model(copied: Path) -> None:
    shutil.rmtree(copied / "language_model")
    list_again(copied)
    model = ModelFolder(copied)
    with pytest.raises(ModelError, match="has no language model with both tokenizers"):
        _ = model.vocabulary
    assert model.motion_tokens == 18


def test_examples_travel_with_the_model(copied: Path, tmp_path: Path) -> None:
    assert ModelFolder(copied).facts.examples == Examples()
    examples = Examples(video=("a red circle moves up",), question=("What colour is it?",))
    finish_model_folder(copied, replace(ModelFolder(copied).facts, examples=examples))
    ModelFolder(copied).save(tmp_path / "copy")
    merge_models([ModelFolder(tmp_path / "copy")], tmp_path / "merged")
    assert ModelFolder(tmp_path / "merged").facts.examples == examples


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"videos": ["up"]}, "videos: Unexpected keyword"),
        ({"video": ["  "]}, "video.0: String should have at least 1"),
        ({"video": ["a" * 201]}, "video.0: String should have at most 200"),
        ({"question": ["Why?"] * 9}, "question: Tuple should have at most 8"),
        (["up"], "dictionary"),
    ],
)
def test_wrong_examples_are_named(copied: Path, examples: object, message: str) -> None:
    content = json.loads((copied / MODEL_FILE).read_text())
    (copied / MODEL_FILE).write_text(json.dumps(content | {"examples": examples}))
    with pytest.raises(ModelError, match=rf"examples of .*{MODEL_FILE}: .*{message}"):
        _ = ModelFolder(copied).facts


def test_unknown_scheduler(copied: Path) -> None:
    path = copied / "keyframe_detokenizer" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    list_again(copied)
    with pytest.raises(ModelError, match="scheduler 'PNDMScheduler'; known are DDIMScheduler"):
        ModelFolder(copied).load("keyframe_detokenizer/scheduler")


def test_saving_over_something(tiny: ModelFolder, saved: Path) -> None:
    with pytest.raises(ModelError, match="is not empty"):
        tiny.save(saved)


@pytest.mark.parametrize("part", NETWORKS)
def test_pickled_weights_are_not_read(copied: Path, tmp_path: Path, part: str) -> None:
    """Whatever a library would take instead of safetensors."""
    bomb = pickle.dumps(Bomb(tmp_path / "unpickled"))
    weights_of(copied / part).unlink()
    for name in ("model.bin", "pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (copied / part / name).write_bytes(bomb)
    list_again(copied)
    with pytest.raises(ModelError):
        ModelFolder(copied).load(part)
    for name in WEIGHTS:
        (copied / part / name).write_bytes(bomb)
    list_again(copied)
    with pytest.raises(ModelError):
        ModelFolder(copied).load(part)
    assert not (tmp_path / "unpickled").exists()


def test_default_sizes_fit_the_networks(tiny: ModelFolder) -> None:
    settings: tuple[Any, Any] = ("cpu", torch.float32)
    sizes = tiny.sizes
    generator = torch.Generator().manual_seed(0)
    detokenizer = tiny.keyframe_detokenizer(*settings)
    scale = 1 << (len(detokenizer.vae.config.block_out_channels) - 1)
    start = detokenizer.noise(sizes.keyframe_height, sizes.keyframe_width, 4, [generator])
    assert start.latents.shape == (1, 4, sizes.keyframe_height // scale, sizes.keyframe_width // scale)
    latent_size = tiny.video_detokenizer(*settings).latent_size(sizes.video_height, sizes.video_width)
    assert latent_size == (sizes.video_height // scale, sizes.video_width // scale)
    assert tiny.understanding(*settings).vocabulary == tiny.vocabulary


def test_a_language_model_brings_no_code(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its own, nor a prompt that asks for it, nor another attention or architecture."""
    part = copied / "language_model"
    (part / "strange.py").write_text("raise SystemExit('a stranger runs')")
    config = json.loads((part / "config.json").read_text())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    strange = {"auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}}
    strange |= {"attn_implementation": "kernels-community/strange", "_attn_implementation": "strange"}
    (part / "config.json").write_text(json.dumps(config | strange))
    list_again(copied)
    loaded = ModelFolder(copied).load("language_model")
    assert loaded.config._attn_implementation == "sdpa"
    tokenizer = json.loads((part / "tokenizer_config.json").read_text())
    strange = {"auto_map": {"AutoTokenizer": ["strange.T", None]}, "tokenizer_class": "StrangeTokenizer"}
    (part / "tokenizer_config.json").write_text(json.dumps(tokenizer | strange))
    list_again(copied)
    with pytest.raises(ModelError, match="no text tokenizer"):
        ModelFolder(copied).text_tokenizer()
    (part / "config.json").write_text(json.dumps(config | {"model_type": "clip"}))
    list_again(copied)
    with pytest.raises(ModelError, match="holds a 'clip', which is no causal language model"):
        ModelFolder(copied).load("language_model")
