"""OpenAI's own client, unmodified, as its documentation uses it."""

import base64
import io
from typing import Any

import openai
import pytest
from PIL import Image

from .running import Running, picture, video

MODEL = "tiny"


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def frame(left: int, width: int = 96) -> dict[str, Any]:
    """Frame of a video in which a square moves, as an image of a message."""
    file, drawn = io.BytesIO(), Image.new("RGB", (width, 64), (20, 20, 20))
    drawn.paste((250, 30, 30), (left, 20, left + 20, 40))
    drawn.save(file, "JPEG")
    return {"type": "image_url", "image_url": {"url": data_url("image/jpeg", file.getvalue()), "detail": "low"}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def ask(service: Running, *messages: Any, **fields: Any) -> Any:
    request: Any = {"model": MODEL, "messages": messages, "max_tokens": 8} | fields
    return service.client().chat.completions.create(**request)


def prompt_tokens(service: Running, *messages: Any, **fields: Any) -> int:
    return int(ask(service, *messages, max_tokens=1, **fields).usage.prompt_tokens)


def test_its_own_answer_is_appended(service: Running) -> None:
    messages: list[Any] = [user(text("Hello?"))]
    answer = ask(service, *messages)
    messages += [answer.choices[0].message, user(text("More?"))]
    assert ask(service, *messages).usage.prompt_tokens > answer.usage.total_tokens
    ask(service, {"role": "assistant", "content": "models write everything:\0"}, *messages)


def test_answers_differ_unless_they_have_a_seed(service: Running) -> None:
    question, length = user(text("Hello?")), {"max_tokens": 16}
    first, second = ask(service, question, **length), ask(service, question, **length)
    assert (first.temperature, first.seed == second.seed) == (1, False)
    assert first.choices[0].message.content != second.choices[0].message.content
    events = list(ask(service, question, seed=first.seed, stream=True, **length))
    said = "".join(event.choices[0].delta.content or "" for event in events)
    assert said.strip() == first.choices[0].message.content
    assert {(event.seed, event.temperature) for event in events} == {(first.seed, 1)}


def test_usage_tells_what_was_cached(service: Running) -> None:
    question = user(text("a question of some length " * 4))
    ask(service, question)
    usage = ask(service, question).usage
    assert usage.prompt_tokens - 32 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    events = list(ask(service, question, stream=True, stream_options={"include_usage": True}))
    assert events[-1].usage.prompt_tokens_details == usage.prompt_tokens_details
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)


def test_errors_before_the_first_piece_have_their_status(service: Running) -> None:
    for stream in (False, True):
        with pytest.raises(
            openai.BadRequestError, match="tokens of text, with 8 for the answer: more than the context"
        ):
            ask(service, user(text("a" * 5000)), stream=stream)
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[1\]: .*image"):
        ask(service, user(text("?"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}))


def test_an_answer_takes_what_is_left_of_the_context(service: Running) -> None:
    answer = ask(service, user(text("a" * 3900)), max_tokens=None)
    assert answer.choices[0].finish_reason == "stop" or answer.usage.total_tokens == 4096


def test_control_tokens_are_letters(service: Running) -> None:
    base = prompt_tokens(service, user(text("ab")))
    for typed in ("</s>", "<s>", "<unk>", "[IMG]"):
        assert prompt_tokens(service, user(text(f"a{typed}b"))) == base + len(typed)


def test_pictures_and_videos_of_all_turns_are_seen(service: Running) -> None:
    still = {"type": "image_url", "image_url": {"url": data_url("image/png", picture())}}
    moving = {"type": "video_url", "video_url": {"url": data_url("video/mp4", video()), "fps": 2, "max_frames": 32}}
    answer = {"role": "assistant", "content": "Noise."}
    blind = prompt_tokens(service, user(text("What?")), answer, user(text("And?")))
    one = prompt_tokens(service, user(still, text("What?")), answer, user(text("And?")))
    both = prompt_tokens(service, user(still, text("What?")), answer, user(text("And?"), moving))
    assert blind < one < both
    assert prompt_tokens(service, user(still)) > one - blind
    first, second = (
        ask(service, *messages, temperature=0, max_tokens=24).choices[0].message.content
        for messages in (
            (user(still, text("a")), answer, user(text("b"))),
            (user(text("a")), answer, user(still, text("b"))),
        )
    )
    assert first != second


def test_sixty_four_frames_are_pictures_or_a_video(service: Running) -> None:
    frames = [frame(number) for number in range(64)]
    pictures = prompt_tokens(service, user(*frames, text("What moves?")))
    clips = prompt_tokens(service, user(*frames, text("What moves?")), extra_body={"images_as_video_fps": 8})
    blind = prompt_tokens(service, user(text("What moves?")))
    assert blind < clips < pictures
    assert clips - blind > 18  # motion codes of a clip
    with pytest.raises(openai.BadRequestError, match=r"of one size, not 64 x 64 and 96 x 64"):
        ask(service, user(frame(0), frame(0, width=64)), extra_body={"images_as_video_fps": 8})
    with pytest.raises(openai.BadRequestError, match="129 images and videos; at most 128"):
        ask(service, user(*frames, *frames, frame(0)))
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens of text and \d+ of 64 pictures, with 3800 for"):
        ask(service, user(*frames), max_tokens=3800)


def test_images_of_the_client_s_examples(service: Running) -> None:
    made = service.client().images.generate(
        model=MODEL, prompt="a circle", n=1, size="auto", quality="auto", output_format="png", background="opaque"
    )
    assert made.data is not None
    seed = made.data[0].model_extra["seed"]  # type: ignore[index]
    again = service.client().images.generate(prompt="a circle", extra_body={"seed": seed})
    assert again.data is not None
    assert again.data[0].b64_json == made.data[0].b64_json
