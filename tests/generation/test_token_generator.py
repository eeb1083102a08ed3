"""Generation of visual and motion codes, prompts and their token ids, and settings."""

from dataclasses import replace

import numpy as np
import pytest

from tests.generation.conftest import FAST
from videolavit.generation.decoding import GREEDY, decode, embed_prompts
from videolavit.generation.program import TokensRequest
from videolavit.generation.prompts import Picture, Prompt, encode_pictures, prompt_ids
from videolavit.generation.runtime import Runtime
from videolavit.generation.settings import GenerateSettings, generator
from videolavit.generation.token_generator import PromptTooLong, TokenGenerator, TokenGrammar
from videolavit.models.folder import ModelFolder


def _token_generator(runtime: Runtime, settings: GenerateSettings = FAST) -> TokenGenerator:
    with runtime.use("language_model") as model:
        return TokenGenerator(model, TokenGrammar(runtime.model, runtime.model.text_tokenizer(), settings))


def test_a_clip_is_a_picture_and_135_codes_of_motion(runtime: Runtime, model: ModelFolder) -> None:
    tokens = _token_generator(runtime)
    sequence = tokens.grammar.begin(TokensRequest(["abc"], 0, clips=2))
    assert [(span.clip, span.kind) for span in sequence.spans] == [
        (0, "visual"),
        (0, "motion"),
        (1, "visual"),
        (1, "motion"),
    ]
    (codes,) = tokens.generate([TokensRequest(["abc"], 0, clips=1)])
    visual, motion = codes[0].visual, codes[0].motion
    assert visual is not None
    assert motion is not None
    assert len(motion) == 135
    assert max(visual) < 512
    assert max(motion) < 128


def test_a_clip_follows_the_clips_before(runtime: Runtime, model: ModelFolder) -> None:
    """Codes of a second clip are those of a prompt that holds the first one."""
    settings = replace(FAST, temperature=0.0)
    tokens = _token_generator(runtime, settings)
    (codes,) = tokens.generate([TokensRequest(["abc"], 0, clips=2)])
    first, ids = codes[0], model.vocabulary
    sequence = tokens.grammar.begin(TokensRequest(["abc"], 0, clips=1))
    assert first.visual is not None
    assert first.motion is not None
    sequence.ids += [*ids.image(first.visual), *ids.motion(first.motion), ids.image_start]
    span = sequence.spans[0]
    prompts = embed_prompts(tokens.model, [sequence.ids])
    (row,) = decode(tokens.model, prompts, span.policy, [span.sampling], [sequence.random], span.guidance)
    assert span.codes(row) == codes[1].visual


def test_pictures_have_a_number_of_codes_within_the_limits(runtime: Runtime) -> None:
    def lengths(settings: GenerateSettings) -> list[int]:
        requests = [TokensRequest(["abc"], seed) for seed in range(60)]
        return [len(codes[0].visual or ()) for codes in _token_generator(runtime, settings).generate(requests)]

    # The temperature makes all 513 ids equally likely: some sequences reach [/IMG] by themselves, and some do not.
    free = lengths(replace(FAST, min_visual=3, max_visual=36, temperature=1000.0, top_k=None, visual_guidance=1.0))
    assert 3 <= min(free) < 36
    assert max(free) == 36
    assert set(lengths(replace(FAST, min_visual=1, max_visual=1))) == {1}


def test_motion_is_greedy_except_after_a_given_picture(runtime: Runtime) -> None:
    tokens = _token_generator(runtime)
    requests = [TokensRequest(["a", [1, 2, 3]], seed, clips=2, first_given=True) for seed in (1, 1, 2)]
    assert [span.sampling for span in tokens.grammar.begin(requests[0]).spans] == [
        FAST.sampling(),
        FAST.sampling(),
        GREEDY,
    ]
    drawn = [codes[0] for codes in tokens.generate(requests)]
    assert {codes.visual for codes in drawn} == {None}
    assert drawn[0].motion == drawn[1].motion
    assert drawn[1].motion != drawn[2].motion


def test_motion_depends_on_the_prompt(runtime: Runtime) -> None:
    requests = [TokensRequest([text, [5]], 0, clips=1, first_given=True) for text in ("abc", "zy")]
    one, other = (codes[0] for codes in _token_generator(runtime).generate(requests))
    assert one.motion != other.motion


PICTURE, CLIP, CONTEXT = 36 + 2, 36 + 2 + 135 + 2, 4096


@pytest.mark.parametrize(
    ("length", "clips", "given", "message"),
    [
        (CONTEXT - PICTURE + 1, 0, False, f"prompt has {CONTEXT - PICTURE + 1} tokens, too many for a context of 4096"),
        (CONTEXT - CLIP + 1, 1, False, f"the prompt has {CONTEXT - CLIP + 1} tokens, too many .*; shorten it"),
        (CONTEXT - CLIP + PICTURE + 1, 1, True, "the prompt has .* too many"),
        (3, 99, False, "99 clips do not fit: after a prompt of 3 tokens the context of 4096 holds 23 of up to 175"),
        (CONTEXT - 3 * CLIP + 1, 3, False, "3 clips do not fit: .* holds 2 of"),
        (CONTEXT - 3 * CLIP + PICTURE + 1, 3, True, "3 clips do not fit: .* holds 2 of"),
    ],
)
def test_one_token_too_many_is_refused(length: int, clips: int, given: bool, message: str, runtime: Runtime) -> None:
    tokens = _token_generator(runtime, GenerateSettings())
    with pytest.raises(PromptTooLong, match=message):
        tokens.grammar.begin(TokensRequest(["a" * length], 0, clips, given))
    if clips < 99:
        assert len(tokens.grammar.begin(TokensRequest(["a" * (length - 1)], 0, clips, given)).ids) == length - 1


def test_twenty_clips_fit(runtime: Runtime) -> None:
    sequence = _token_generator(runtime, GenerateSettings()).grammar.begin(TokensRequest(["abc"], 0, clips=20))
    assert len(sequence.spans) == 40


def test_prompt_ids_keep_the_order(model: ModelFolder) -> None:
    ids, text, codes = model.vocabulary, model.text_tokenizer(), [[3, 4, 5], [6]]
    a, *bc = (text.convert_tokens_to_ids(letter) for letter in "abc")
    prompt = ["a", codes[0], "bc", codes[1]]
    marked = prompt_ids(prompt, text, ids)
    assert marked == [a, *ids.image(codes[0]), *bc, *ids.image(codes[1])]
    assert prompt_ids(prompt, text, ids, markers=False) == [
        token for token in marked if token not in (ids.image_start, ids.image_end)
    ]
    assert text.bos_token_id not in marked


def test_pictures_of_any_size_have_codes(runtime: Runtime, pictures: list[Picture]) -> None:
    with runtime.use("visual_tokenizer") as tokenizer:
        codes = encode_pictures(pictures, tokenizer)
    assert len(codes) == 2
    assert all(0 < len(one) <= 36 for one in codes)


def test_the_text_of_a_prompt_is_without_its_pictures(pictures: list[Picture]) -> None:
    assert Prompt(("a", pictures[0], "bc", pictures[1])).text == "a bc"


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
