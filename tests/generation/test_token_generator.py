"""Generation of visual and motion codes, prompts and their token ids, and settings."""

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


def _token_generator(runtime: Runtime, settings: GenerateSettings = FAST) -> TokenGenerator:
    with runtime.use("language_model") as model:
        limits = settings.visual_limits(runtime.model.num_patches)
        return TokenGenerator(model, runtime.model.vocabulary, runtime.model.motion_tokens, limits, settings)


def _sequence(seed: int = 0, length: int = 3) -> GeneratedTokens:
    return GeneratedTokens((TEXT * length)[:length], generator(seed, "tokens"))


def test_a_clip_is_a_picture_and_135_codes_of_motion(runtime: Runtime, model: ModelFolder) -> None:
    sequence, ids = _sequence(), model.vocabulary
    tokens = _token_generator(runtime)
    tokens.generate_pictures([sequence], guidance=4.0)
    tokens.generate_motion([sequence], from_picture=[False])
    (visual,), (motion,) = sequence.visual, sequence.motion
    assert sequence.ids == [*TEXT, *ids.image(visual), *ids.motion(motion)]
    assert len(motion) == 135
    assert max(visual) < 512
    assert max(motion) < 128


def test_pictures_have_a_number_of_codes_within_the_limits(runtime: Runtime, model: ModelFolder) -> None:
    # The temperature makes all 513 ids equally likely: some sequences reach [/IMG] by themselves, and some do not.
    tokens = _token_generator(runtime, replace(FAST, min_visual=3, max_visual=36, temperature=1000.0, top_k=None))
    sequences = [_sequence(seed) for seed in range(60)]
    tokens.generate_pictures(sequences, guidance=1.0)
    lengths = [len(sequence.visual[0]) for sequence in sequences]
    assert 3 <= min(lengths) < 36
    assert max(lengths) == 36
    one = _token_generator(runtime, replace(FAST, min_visual=1, max_visual=1))
    one.generate_pictures(sequences, guidance=4.0)
    assert {len(sequence.visual[1]) for sequence in sequences} == {1}


def test_motion_is_greedy_except_after_a_given_picture(runtime: Runtime) -> None:
    generated = {}
    for given in (False, True):
        sequences = [_sequence(seed) for seed in (1, 1, 2)]
        _token_generator(runtime).generate_motion(sequences, [given] * 3)
        generated[given] = [sequence.motion[0] for sequence in sequences]
    greedy, drawn = generated[False], generated[True]
    assert greedy[0] == greedy[1] == greedy[2]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2]
    assert drawn[0] != greedy[0]


def test_motion_depends_on_the_prompt(runtime: Runtime) -> None:
    one, other = _sequence(), GeneratedTokens([90, 91], generator(0, "tokens"))
    _token_generator(runtime).generate_motion([one, other], [False, False])
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
def test_one_token_too_many_is_refused(
    length: int, picture_count: int, motions: int, message: str, runtime: Runtime
) -> None:
    tokens = _token_generator(runtime, GenerateSettings())
    with pytest.raises(PromptTooLong, match=message):
        tokens.check_length([_sequence(), _sequence(length=length)], [picture_count] * 2, motions)
    if motions < 99:
        tokens.check_length([_sequence(), _sequence(length=length - 1)], [picture_count] * 2, motions)


def test_twenty_clips_fit(runtime: Runtime) -> None:
    _token_generator(runtime, GenerateSettings()).check_length([_sequence()], [20], 20)


def test_prompt_ids_keep_the_order(runtime: Runtime, model: ModelFolder, pictures: list[Picture]) -> None:
    ids, text = model.vocabulary, model.text_tokenizer()
    with runtime.use("visual_tokenizer") as tokenizer:
        codes = encode_pictures(pictures, tokenizer)
    assert len(codes) == 2
    assert all(0 < len(one) <= 36 for one in codes)
    prompt = Prompt(("a", pictures[0], "bc", pictures[1]))
    a, *bc = (text.convert_tokens_to_ids(letter) for letter in "abc")
    marked = prompt_ids(prompt, codes, text, ids)
    assert marked == [a, *ids.image(codes[0]), *bc, *ids.image(codes[1])]
    assert prompt_ids(prompt, codes, text, ids, markers=False) == [
        token for token in marked if token not in (ids.image_start, ids.image_end)
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
def test_limits_of_visual_codes_follow_the_number_of_patches(
    given: dict[str, int], patches: int, limits: tuple[int, int]
) -> None:
    assert GenerateSettings(**given).visual_limits(patches) == limits  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"max_visual": 65}, {"min_visual": 65}, {"min_visual": 30, "max_visual": 20}])
def test_more_visual_codes_than_patches_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="which must be at most 64, the number of patches"):
        GenerateSettings(**wrong).visual_limits(64)  # type: ignore[arg-type]


def test_random_numbers_depend_on_seed_and_purpose() -> None:
    draws = {
        (seed, purpose): generator(seed, purpose).initial_seed()
        for seed in (0, 1, -1)
        for purpose in ("tokens", "video 0")
    }
    assert len(set(draws.values())) == 6
    assert generator(1, "tokens").initial_seed() == draws[1, "tokens"]
