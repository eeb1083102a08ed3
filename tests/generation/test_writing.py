"""The grammar of pictures and motion, and prompts that leave no room for them."""

from dataclasses import replace

import numpy as np
import pytest

from tests.generation.conftest import FAST
from videolavit.generation.prompts import Picture, Prompt, encode_pictures, prompt_ids
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, generator
from videolavit.generation.token_generator import GeneratedTokens, PromptTooLong, TokenGenerator
from videolavit.models.folder import ModelFolder

TEXT = [10, 20, 30]


def _writer(runtime: Runtime, settings: GenerateSettings = FAST) -> TokenGenerator:
    with runtime.use("language_model") as model:
        limits = settings.visual_limits(runtime.model.num_patches)
        return TokenGenerator(model, runtime.model.vocabulary, runtime.model.motion_tokens, limits, settings)


def _script(seed: int = 0, length: int = 3) -> GeneratedTokens:
    return GeneratedTokens((TEXT * length)[:length], generator(seed, "tokens"))


def test_a_clip_is_a_picture_and_135_codes_of_motion(runtime: Runtime, model: ModelFolder) -> None:
    script, words = _script(), model.vocabulary
    writer = _writer(runtime)
    writer.write_pictures([script], guidance=4.0)
    writer.write_motion([script], from_picture=[False])
    (visual,), (motion,) = script.visual, script.motion
    assert script.ids == [*TEXT, *words.image(visual), *words.motion(motion)]
    assert len(motion) == 135
    assert max(visual) < 512
    assert max(motion) < 128


def test_pictures_keep_between_the_fewest_and_the_most(runtime: Runtime, model: ModelFolder) -> None:
    # So hot that all 513 ids are as likely: some scripts come to [/IMG] by themselves, and some do not.
    writer = _writer(runtime, replace(FAST, min_visual=3, max_visual=36, temperature=1000.0, top_k=None))
    scripts = [_script(seed) for seed in range(60)]
    writer.write_pictures(scripts, guidance=1.0)
    lengths = [len(script.visual[0]) for script in scripts]
    assert 3 <= min(lengths) < 36
    assert max(lengths) == 36
    one = _writer(runtime, replace(FAST, min_visual=1, max_visual=1))
    one.write_pictures(scripts, guidance=4.0)
    assert {len(script.visual[1]) for script in scripts} == {1}


def test_motion_is_greedy_but_behind_a_given_picture(runtime: Runtime) -> None:
    written = {}
    for given in (False, True):
        scripts = [_script(seed) for seed in (1, 1, 2)]
        _writer(runtime).write_motion(scripts, [given] * 3)
        written[given] = [script.motion[0] for script in scripts]
    greedy, drawn = written[False], written[True]
    assert greedy[0] == greedy[1] == greedy[2]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2]
    assert drawn[0] != greedy[0]


def test_what_is_written_follows_what_came_before(runtime: Runtime) -> None:
    one, other = _script(), GeneratedTokens([90, 91], generator(0, "tokens"))
    _writer(runtime).write_motion([one, other], [False, False])
    assert one.motion != other.motion


PICTURE, CLIP, CONTEXT = 36 + 2, 36 + 2 + 135 + 2, 4096


@pytest.mark.parametrize(
    ("length", "picture_count", "motions", "message"),
    [
        (CONTEXT - PICTURE + 1, 1, 0, f"the prompt has {CONTEXT - PICTURE + 1} tokens, too many for a context of 4096"),
        (CONTEXT - CLIP + 1, 1, 1, f"the prompt has {CONTEXT - CLIP + 1} tokens, too many .*; shorten it"),
        (CONTEXT - CLIP + PICTURE + 1, 0, 1, "the prompt has .* too many"),
        (3, 99, 99, "99 clips do not fit: after a prompt of 3 tokens the context of 4096 holds 23 of up to 175 tokens"),
        (CONTEXT - 3 * CLIP + 1, 3, 3, "3 clips do not fit: .* holds 2 of"),
        (CONTEXT - 3 * CLIP + PICTURE + 1, 2, 3, "3 clips do not fit: .* holds 2 of"),
    ],
)
def test_what_does_not_fit_is_refused_by_one_token(
    length: int, picture_count: int, motions: int, message: str, runtime: Runtime
) -> None:
    writer = _writer(runtime, GenerateSettings())
    with pytest.raises(PromptTooLong, match=message):
        writer.check_length([_script(), _script(length=length)], [picture_count] * 2, motions)
    if motions < 99:
        writer.check_length([_script(), _script(length=length - 1)], [picture_count] * 2, motions)


def test_twenty_clips_fit_and_can_be_told(runtime: Runtime) -> None:
    _writer(runtime, GenerateSettings()).check_length([_script()], [20], 20)


def test_prompt_ids_keep_the_order(runtime: Runtime, model: ModelFolder, pictures: list[Picture]) -> None:
    words, text = model.vocabulary, model.text_tokenizer()
    with runtime.use("visual_tokenizer") as tokenizer:
        codes = encode_pictures(pictures, tokenizer)
    assert len(codes) == 2
    assert all(0 < len(one) <= 36 for one in codes)
    prompt = Prompt(("a", pictures[0], "bc", pictures[1]))
    a, *bc = (text.convert_tokens_to_ids(letter) for letter in "abc")
    marked = prompt_ids(prompt, codes, text, words)
    assert marked == [a, *words.image(codes[0]), *bc, *words.image(codes[1])]
    assert prompt_ids(prompt, codes, text, words, markers=False) == [
        token for token in marked if token not in (words.image_start, words.image_end)
    ]
    assert text.bos_token_id not in marked
    assert prompt.text == "a bc"


@pytest.mark.parametrize("parts", [(), ("",), (" \n", "")])
def test_an_empty_prompt_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        Prompt(parts)


def test_a_picture_alone_is_a_prompt() -> None:
    assert Prompt((np.zeros((4, 4, 3), np.uint8),)).text == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_visual": 0}, "min_visual must be at least 1"),
        ({"max_visual": 0}, "max_visual must be at least 1"),
        ({"keyframe_steps": 0}, "keyframe_steps must be at least 1, not 0"),
        ({"decode_chunk": 0}, "decode_chunk must be at least 1, not 0"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"video_height": -16}, "video_height must be at least 1, not -16"),
        ({"constraint_rate": 1}, "constraint_rate must be between 0 and 1"),
        ({"constraint": "tight"}, "constraint"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "patches", "limits"),
    [
        ({}, 256, (20, 256)),
        ({}, 64, (5, 64)),
        ({}, 4, (1, 4)),
        ({"max_visual": 3}, 256, (3, 3)),
        ({"min_visual": 30, "max_visual": 40}, 64, (30, 40)),
    ],
)
def test_visual_codes_of_a_picture_follow_its_patches(
    given: dict[str, int], patches: int, limits: tuple[int, int]
) -> None:
    assert GenerateSettings(**given).visual_limits(patches) == limits  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"max_visual": 65}, {"min_visual": 65}, {"min_visual": 30, "max_visual": 20}])
def test_more_visual_codes_than_patches_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="that at most 64: so many patches has a picture of this model"):
        GenerateSettings(**wrong).visual_limits(64)  # type: ignore[arg-type]


def test_random_numbers_belong_to_a_seed_and_a_purpose() -> None:
    draws = {
        (seed, purpose): generator(seed, purpose).initial_seed()
        for seed in (0, 1, -1)
        for purpose in ("tokens", "video 0")
    }
    assert len(set(draws.values())) == 6
    assert generator(1, "tokens").initial_seed() == draws[1, "tokens"]
