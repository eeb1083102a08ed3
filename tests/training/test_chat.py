"""Instruction tuning: what a conversation becomes, and what is trained on it."""

import base64
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import moving_texture
from videolavit.generation.describe import embed_chat_prompt, encode_visual_context
from videolavit.media import DecomposeSettings, MediaError, decompose, write_mp4
from videolavit.media.errors import SourceMissing
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import NO_LABEL
from videolavit.models.language_model.lora import LoRASettings
from videolavit.models.language_model.objective import AnswerObjective
from videolavit.models.objective import Batch, Draws
from videolavit.records.conversations import BadRecord
from videolavit.training.chat import ConversationTooLong
from videolavit.training.component import Component
from videolavit.training.components.language_model import ChatSettings, LanguageModelTraining
from videolavit.training.data import DataError, Item
from videolavit.training.settings import TrainInputs
from videolavit.vocabulary import VIDEO, chat_prompt
from videolavit.vocabulary.conversation import SYSTEM, conversation

CHAT = LanguageModelTraining(stage="chat", chat=ChatSettings(max_clips=2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stage": "chat", "new_rows": True}, "new_rows is for the stage pretrain, and does nothing in chat"),
        ({"stage": "chat", "sequence_length": 512}, "sequence_length is for the stage pretrain"),
        ({"chat": ChatSettings(max_clips=2)}, "chat is for the stage chat, and does nothing in pretrain"),
    ],
)
def test_settings_of_the_other_stage_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LanguageModelTraining(**settings)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def several() -> list[dict[str, Any]]:
    """A conversation with a video, a picture and a stored picture, in two turns."""
    stored = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(stored, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()
    parts = [{"type": "text", "text": "Or"}, {"type": "image_url", "image_url": {"url": url}}]
    return [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Is <video> like <image>?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "Yes."},
    ]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_mp4(moving_texture(40, 64, 96, 0), folder / "moves.mp4", 6)
    Image.fromarray(next(moving_texture(1, 64, 96, 1))).save(folder / "still.png")
    lines: list[Any] = [
        {"id": "0", "video": "moves.mp4", "conversations": turns("<video>\nWhat moves?", "All.")},
        {"id": "1", "image": "still.png", "conversations": turns("<image>\nWhat is it?", "Noise.")},
        {"id": "2", "conversations": turns("One and one?", "Two.")},
        {"id": "3", "video": "gone.mp4", "conversations": turns("<video>\nWhat?", "Nothing.")},
        {"id": "4", "conversations": turns("Only a question?")},
        {"id": "5", "conversations": turns("x" * 5000, "Long.")},
        "no json",
        {"image": ["still.png"] * 400, "conversations": turns("<image>" * 400, "Too many.")},
        {"image": ["still.png"], "video": "moves.mp4", "messages": several(), "id": "several"},
    ]
    file = folder / "chat.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def component(records: Path) -> Component:
    return CHAT.build(ModelFolder("tiny"), TrainInputs(train=[str(records)], validation=[str(records)]))


def items(component: Component) -> list[Item]:
    """In the order of the file."""
    return list(component.validation)


def batch_of(component: Component, *rows: int) -> Batch:
    chosen = [items(component)[row] for row in rows]
    return component.collate(chosen, [item.load() for item in chosen])


def test_a_conversation_reads_as_published() -> None:
    tokenizer = ModelFolder("tiny").text_tokenizer()
    ids, written = conversation(tokenizer, [((VIDEO, "What?"), "This."), (("And?",), "That.")])
    head = chat_prompt(tokenizer, (), (VIDEO, "What?"))
    assert ids[: len(head)] == head
    assert not any(written[: len(head)])
    at = ids.index(VIDEO)
    assert tokenizer.decode(ids[1:at]) == f"{SYSTEM} USER: "
    said = r" This. \n </s>", r" That. \n </s>"
    assert tokenizer.decode(ids[at + 1 :]) == f"\nWhat? ASSISTANT:{said[0]}USER: And? ASSISTANT:{said[1]}"
    assert tokenizer.decode([token for token, by_model in zip(ids, written, strict=True) if by_model]) == "".join(said)


def test_only_answers_count(component: Component) -> None:
    tokenizer = ModelFolder("tiny").text_tokenizer()
    batch = batch_of(component, 0, 1, 2)
    labels = batch.inputs["labels"]
    assert tokenizer.decode(labels[1][labels[1] != NO_LABEL]) == r" Noise. \n </s>"
    assert batch.counts["loss"] == int((labels != NO_LABEL).sum())
    assert batch.inputs["media"].tolist() == [1, 1, 0]
    assert batch.inputs["pictures"].tolist() == [1, 1]
    assert batch.inputs["clips"].tolist() == [1, 0]


def test_the_loss_is_that_of_the_finished_model(component: Component, records: Path) -> None:
    """Answer by answer behind the prompt that a question to the model makes; batched with others it is the same."""
    model, objective = ModelFolder("tiny"), component.objective
    assert isinstance(objective, AnswerObjective)
    network, tokenizer = objective.model, model.text_tokenizer()
    video = list(decompose(str(records.parent / "moves.mp4"), DecomposeSettings(policy="eval", max_clips=2)))
    picture = np.asarray(Image.open(records.parent / "still.png").convert("RGB"))
    expected = 0.0
    red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (48, 64, 3))
    first = "Be short.", "Is", video, "like", picture, "?"
    asked: list[tuple[list[tuple[Any, str]], Any, str]] = [
        ([], (video, "What moves?"), "All."),
        ([], (picture, "What is it?"), "Noise."),
        ([], ("One and one?",), "Two."),
        ([], first, "No."),
        ([(first, "No.")], ("Or", red), "Yes."),
    ]

    def shown(content: Any) -> list[Any]:
        encode = partial(encode_visual_context, network.visual_tokenizer, network.motion_tokenizer)
        return [part if isinstance(part, str) else encode(part) for part in content]

    for before, question, answer in asked:
        earlier = [(shown(content), reply) for content, reply in before]
        prompt = embed_chat_prompt(network, tokenizer, earlier, shown(question)).embeds[None]
        reply = torch.tensor(
            [*tokenizer(rf" {answer} \n ", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        )
        with torch.no_grad():
            embeds = torch.cat([prompt, network.embed_ids(reply)[None]], dim=1)
            scores = network.language_model(inputs_embeds=embeds).logits[0, prompt.shape[1] - 1 : -1]
        expected += float(torch.nn.functional.cross_entropy(scores, reply, reduction="sum"))
    batch = batch_of(component, 0, 1, 2, 8)
    with torch.no_grad():
        got = float(objective(batch.inputs, Draws(0, batch.positions))["loss"])
    assert got == pytest.approx(expected, rel=1e-4)


def test_what_is_trained(component: Component) -> None:
    """Language model, merger and projection; never the ViT, the selector, the codebook or the motion tokenizer."""
    objective = component.objective
    for batch in (batch_of(component, 0, 1), batch_of(component, 2)):
        objective(batch.inputs, Draws(0, batch.positions))["loss"].backward()
        got = {name for name, value in objective.named_parameters() if value.grad is not None}
        assert {name.split(".")[1] for name in got} == {"language_model", "visual_tokenizer"}
        assert {name.split(".")[2] for name in got if "visual" in name} == {"causal_encoder", "vit_proj"}
        assert all(bool(value.grad.isfinite().all()) for value in objective.parameters() if value.grad is not None)
        objective.zero_grad()


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (3, SourceMissing, "gone.mp4"),
        (4, BadRecord, "record 5 of .* must speak in turns"),
        (5, ConversationTooLong, "record 6 of .* of a context of 4096"),
        (6, BadRecord, "record 7 of .*: no JSON"),
        (7, ConversationTooLong, "record 8 of .* 400 pictures may take"),
    ],
)
def test_what_cannot_be_used_is_a_reject(component: Component, row: int, error: type[MediaError], message: str) -> None:
    with pytest.raises(error, match=message):
        items(component)[row].load()


def test_it_can_start_from_the_language_model(records: Path) -> None:
    model = ModelFolder("tiny")
    settings = replace(CHAT, chat=replace(CHAT.chat, initialise_from="language_model"))
    component = settings.build(model, TrainInputs(train=[str(records)]))
    states = component.objective.export(component.objective.state_dict())
    for part in ("language_model", "visual_tokenizer", "motion_tokenizer"):
        pretrained = model.load(part).state_dict()
        tuned = states[f"understanding/{part}"]
        assert tuned.keys() - pretrained.keys() <= {"vit_proj.weight", "vit_proj.bias"}
        for name, value in pretrained.items():
            assert torch.equal(tuned[name], value)
        model.load(f"understanding/{part}").load_state_dict(tuned)


def test_adapters_are_merged_into_what_is_saved(records: Path) -> None:
    pytest.importorskip("peft")
    chat = ChatSettings(max_clips=2, train_visual=False)
    component = replace(CHAT, chat=chat, lora=LoRASettings(rank=2, alpha=8)).build(
        ModelFolder("tiny"), TrainInputs(train=[str(records)], validation=[str(records)])
    )
    objective = component.objective
    trained = {name: value for name, value in objective.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in trained.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        batch = batch_of(component, 2)
        adapted = float(objective(batch.inputs, Draws(0, batch.positions))["loss"])
        plain = CHAT.build(ModelFolder("tiny"), TrainInputs(train=[str(records)])).objective
        before = float(plain(batch.inputs, Draws(0, batch.positions))["loss"])
        assert isinstance(plain, AnswerObjective)
        state = objective.export(objective.state_dict())["understanding/language_model"]
        plain.model.language_model.load_state_dict(state)
        after = float(plain(batch.inputs, Draws(0, batch.positions))["loss"])
    assert adapted == pytest.approx(after, rel=1e-5)
    assert abs(before - after) > 0.1


def test_a_json_array_is_trained_on_as_lines_are(records: Path, component: Component, tmp_path: Path) -> None:
    """Same samples; files are named relative to the array."""
    lines = [json.loads(line) for line in records.read_text().splitlines() if line != "no json"]
    array = records.parent / "chat.json"
    array.write_text(json.dumps(lines[:3], indent=1))
    inputs = TrainInputs(train=[str(array)], validation=[str(array)])
    batches = [
        one.collate(chosen, [item.load() for item in chosen])
        for one in (component, CHAT.build(ModelFolder("tiny"), inputs))
        for chosen in [items(one)[:3]]
    ]
    for name, value in batches[0].inputs.items():
        assert torch.equal(value, batches[1].inputs[name]), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no conversations"),
        ("[]", "has no conversations"),
        ('[{"a": 1}, {]', "begins as a JSON array and is none"),
        ('[{"a": 1},]', "begins as a JSON array and is none"),
        ('[{"a": 1}] [2]', "goes on after its end"),
        ('[{"a": 1} {"a": 1}]', "a comma is missing at character 10"),
    ],
)
def test_files_without_conversations_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(DataError, match=message):
        CHAT.build(ModelFolder("tiny"), TrainInputs(train=[str(tmp_path / "chat.json")]))


@pytest.mark.parametrize(
    "source", ["http://[", "s3://", "nosuch://x", "/etc/passwd", "file:///etc/passwd", "../x.png", "x" * 5000, "."]
)
def test_odd_addresses_are_rejects(source: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"image": source, "conversations": turns("<image>", "What?")}))
    inputs = TrainInputs(train=[str(tmp_path / "chat.jsonl")], validation=[str(tmp_path / "chat.jsonl")])
    (item,) = CHAT.build(ModelFolder("tiny"), inputs).validation
    with pytest.raises(MediaError):
        item.load()
