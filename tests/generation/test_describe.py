"""Answers to questions about pictures and videos: batches, streaming, and stop strings."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from videolavit.generation.describe import (
    DescribeSettings,
    Question,
    TextStream,
    answer,
    embed_chat_prompt,
    encode_visual_context,
    stream_answers,
)
from videolavit.generation.prompts import Picture
from videolavit.generation.runtime import Runtime
from videolavit.generation.token_generator import PromptTooLong
from videolavit.media import Clip, DecomposeSettings, decompose
from videolavit.models.folder import ModelFolder
from videolavit.models.language_model import LanguageModelConfig
from videolavit.models.model_file import finish_model_folder
from videolavit.models.part_files import save_part
from videolavit.vocabulary.conversation import STOP, SYSTEM

SHORT = DescribeSettings(max_tokens=24)
PART = "understanding/language_model"


@pytest.fixture(scope="module")
def clips(video_file: Path) -> list[Clip]:
    return list(decompose(video_file, DecomposeSettings(policy="eval", max_clips=2)))


@pytest.fixture(scope="module")
def questions(pictures: list[Picture], clips: list[Clip]) -> list[Question]:
    return [
        Question((pictures[0], "What is it?")),
        Question((clips, "What moves, and where does it move to?")),
        Question(("Who are you?",)),
        Question((pictures[1], "What is it?")),
        Question((clips * 2, "What is it?")),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_batch_equal_single_ones(runtime: Runtime, questions: list[Question], temperature: float) -> None:
    settings = DescribeSettings(max_tokens=24, temperature=temperature, seed=3)
    batch = answer(runtime, questions, settings)
    assert batch == [answer(runtime, [question], settings)[0] for question in questions]
    assert len(set(batch)) == len(questions)
    assert all(batch)


def test_sampled_answers_depend_on_the_seed(runtime: Runtime) -> None:
    one, again, other = (
        answer(runtime, [Question(("Who are you?",))], DescribeSettings(max_tokens=24, temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_answers_are_streamed_side_by_side(runtime: Runtime, questions: list[Question]) -> None:
    pieces = list(stream_answers(runtime, questions, SHORT))
    answers = ["".join(piece for row, piece in pieces if row == number) for number in range(len(questions))]
    assert [text.strip() for text in answers] == answer(runtime, questions, SHORT)
    assert all(piece for _, piece in pieces)
    rows = [row for row, _ in pieces]
    assert rows != sorted(rows)


def test_answers_have_a_length_within_the_limits(runtime: Runtime) -> None:
    lengths = [
        len("".join(piece for _, piece in stream_answers(runtime, [Question(("?",))], DescribeSettings(**counts))))
        for counts in ({"max_tokens": 8}, {"min_tokens": 40, "max_tokens": 40})
    ]
    assert 0 < lengths[0] <= 8
    assert 8 < lengths[1] <= 40


Speaker = Callable[..., Runtime]


@pytest.fixture(scope="module")
def speaker(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """Makes a model that answers every question with the same bytes.

    Its only layer adds nothing, so a token depends on the token before it alone: each byte is followed by the next, the
    last one by itself, and a zero by the end of the answer. A prompt ends with a colon.
    """

    def make(spoken: bytes, template: str | None = None) -> Runtime:
        folder = tmp_path_factory.mktemp("speaker") / "model"
        shutil.copytree(model_path, folder)
        model = ModelFolder(folder)
        text, vocabulary = model.text_tokenizer(PART), model.vocabulary
        ids = [text(":").input_ids[0], *(_byte_id(text, value) for value in spoken)]
        assert len(set(ids)) == len(ids)
        config = LanguageModelConfig(
            text_size=vocabulary.text_size, hidden_size=128, intermediate_size=8, num_layers=1, num_heads=4
        )
        speaking = LlamaForCausalLM(config.llama(vocabulary.size)).requires_grad_(False)
        layer = speaking.model.layers[0]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, speaking.lm_head.weight):
            weight.zero_()
        speaking.model.embed_tokens.weight[ids] = torch.eye(128)[: len(ids)]
        end = text.eos_token_id
        text.chat_template = template
        for place, (_, following) in enumerate(pairwise([*ids, end if spoken[-1] == 0 else ids[-1]])):
            speaking.lm_head.weight[following, place] = 1
        shutil.rmtree(folder / PART)
        save_part(speaking, folder / PART)
        text.save_pretrained(folder / PART)
        finish_model_folder(folder, model.facts)
        return Runtime(ModelFolder(folder))

    return make


def _byte_id(tokenizer: object, value: int) -> int:
    """Id of a byte: the ids of a byte tokenizer follow the sorted alphabet of the bytes."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letter = chr(value) if value in shown else chr(256 + [n for n in range(256) if n not in shown].index(value))
    return 3 + alphabet.index(letter)


@pytest.mark.parametrize(
    ("spoken", "max_tokens", "pieces"),
    [
        ("xé 中🙂!\\nz".encode(), 100, ["x", "é", " ", "中", "🙂", "!"]),  # complete characters, up to the stop string
        (b"ab\\cd\0", 100, ["a", "b", "\\", "c", "d", "\0"]),  # a single backslash is text; the end-of-sequence id
        (b"ab\\", 3, ["a", "b", "\\"]),  # the text that was held back comes at the end
        ("é中".encode(), 4, ["é\ufffd"]),  # max_tokens within a character
    ],
)
def test_text_is_streamed_as_soon_as_it_is_certain(
    speaker: Speaker, spoken: bytes, max_tokens: int, pieces: Sequence[str]
) -> None:
    settings = DescribeSettings(min_tokens=0, max_tokens=max_tokens)
    runtime = speaker(spoken)
    assert [piece for _, piece in stream_answers(runtime, [Question(("?",))], settings)] == list(pieces)
    assert answer(runtime, [Question(("?",)), Question(("Why?",))], settings) == ["".join(pieces).strip()] * 2


def test_a_short_answer_ends_where_the_model_ends_it(speaker: Speaker) -> None:
    """The published prompt is for descriptions, which have 8 tokens or more."""
    template = "{% for one in messages %}{{ one.content }}{% if one.role == 'assistant' %}{{ eos_token }}{% endif %}"
    template += "{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    assert answer(speaker(b"yes\0", template), [Question(("?",))]) == ["yes\0"]
    (published,) = answer(speaker(b"yes\0"), [Question(("?",))])
    assert published.startswith("yes\0")
    assert published != "yes\0"


@pytest.mark.parametrize("stops", [(), ("nowhere", "never"), ("fair play", STOP, "d on")])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_text_after_the_stop_string_is_neither_sent_nor_counted(
    runtime: Runtime, at_once: int, stops: Sequence[str]
) -> None:
    tokenizer = runtime.model.text_tokenizer()
    ids = tokenizer.encode(f"a fair é {STOP} and on and on", add_special_tokens=False)
    stream = TextStream(tokenizer, stops)
    pieces = [stream.push(ids[start : start + at_once]) for start in range(0, len(ids), at_once)]
    assert "".join(pieces) + stream.finish() == "a fair é "
    assert stream.stopped
    assert stream.count == len(tokenizer.encode(f"a fair é {STOP}", add_special_tokens=False))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_first_complete_stop_string_ends_the_text(runtime: Runtime, at_once: int) -> None:
    tokenizer = runtime.model.text_tokenizer()
    ids = tokenizer.encode("one, two, three, four", add_special_tokens=False)
    stream = TextStream(tokenizer, ["four", "two, three", ", thr"])
    pieces = [stream.push(ids[start : start + at_once]) for start in range(0, len(ids), at_once)]
    assert "".join(pieces) + stream.finish() == "one, two"
    assert stream.stopped


def test_pictures_without_features_have_answers(blind: Runtime, pictures: list[Picture], clips: list[Clip]) -> None:
    one, other, video = answer(blind, [Question((about, "?")) for about in (*pictures, clips)], SHORT)
    assert one == other
    assert one != video  # the motion codes are part of its prompt


def test_no_questions_have_no_answers(runtime: Runtime) -> None:
    assert answer(runtime, []) == []


def test_too_many_clips_are_refused(runtime: Runtime, clips: list[Clip]) -> None:
    with pytest.raises(PromptTooLong, match=r"\d+ of 16 clips, with 3000 .* context of 4096; send fewer"):
        answer(runtime, [Question((clips[:1] * 16, "?"))], DescribeSettings(max_tokens=3000))


def test_a_question_too_long_is_refused(runtime: Runtime, pictures: list[Picture]) -> None:
    with pytest.raises(PromptTooLong, match=r"\d+ tokens of text and \d+ of 1 picture, with 512 "):
        answer(runtime, [Question((pictures[0], "a" * 4000))])


def test_an_answer_may_take_what_is_left_of_the_context(speaker: Speaker) -> None:
    settings = DescribeSettings(max_tokens=None)
    assert len(answer(speaker(b"ab"), [Question(("a" * 3800,))], settings)[0]) < 300
    with pytest.raises(PromptTooLong, match="tokens of text: more than the context"):
        answer(speaker(b"ab"), [Question(("a" * 4000,))], settings)


def test_pictures_and_videos_stand_in_their_turns(runtime: Runtime, pictures: list[Picture], clips: list[Clip]) -> None:
    model, tokenizer = runtime.model.understanding("cpu", torch.float32), runtime.model.text_tokenizer(PART)
    encode = partial(encode_visual_context, model.visual_tokenizer, model.motion_tokenizer)
    first, second, video = encode(pictures[0]), encode(pictures[1]), encode(clips)
    turns = [((first, "Compare", second), "Done.")]
    prompt = embed_chat_prompt(model, tokenizer, turns, ("And", video))
    said = [f"{SYSTEM} USER: ", "\nCompare\n", "\n ASSISTANT: Done. \\n </s>USER: And\n", "\n ASSISTANT:"]
    at = 1  # <s>
    for text, shown in zip(said, (first, second, video, None), strict=True):
        letters = text.replace("</s>", "")
        ids = tokenizer(letters, add_special_tokens=False).input_ids
        if letters != text:
            ids.insert(len(text.split("</s>")[0]), tokenizer.eos_token_id)
        assert torch.equal(prompt.embeds[at : at + len(ids)], model.embed_ids(torch.tensor(ids)))
        at += len(ids)
        if shown is not None:
            visual = shown.embed(model)
            assert torch.equal(prompt.embeds[at : at + len(visual)], visual)
            at += len(visual)
    assert at == len(prompt.embeds)
    assert (
        str(prompt) == f"{at - prompt.visual_tokens} tokens of text and {prompt.visual_tokens} of 2 pictures and 1 clip"
    )


def test_a_conversation_is_answered(runtime: Runtime, pictures: list[Picture], clips: list[Clip]) -> None:
    turns = [((pictures[0], "What is it?"), "Noise.")]
    asked = [Question((clips, "And this?"), turns), Question((clips, "And this?")), Question(("And this?",), turns)]
    assert len(set(answer(runtime, asked, SHORT))) == 3


def test_a_video_without_clips_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="no clip"):
        answer(runtime, [Question(([], "?"))])


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0, "min_tokens": 0}, {"max_tokens": 4, "min_tokens": 5}, {"min_tokens": -1}]
)
def test_impossible_lengths_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        DescribeSettings(**wrong)  # type: ignore[arg-type]
