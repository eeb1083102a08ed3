"""Prompts of understanding: questions about images and videos, and conversations (docs/model.md, section 5.4).

A tokenizer with a chat template brings its own prompt. Without one it is that of the published model, Vicuna's.
"""

from collections.abc import Sequence
from typing import Any

from .template import end_of_answer, has_template, of_pairs, templated

IMAGE, VIDEO = -200, -201
"""Placeholders among token ids for an image or a video."""

STOP = "\\n"
"""Stop string of the published answers: a backslash and an n, not a line break."""

PUBLISHED_FEWEST = 8
"""Fewest tokens of the published answers. It is for descriptions: a "yes" would have to go on."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


MarkedText = Sequence[str | int]
"""Message of the user: texts, and the placeholders `IMAGE` and `VIDEO`, in the order in which they stand."""


def conversation(tokenizer: Any, turns: Sequence[tuple[MarkedText, str]]) -> tuple[list[int], list[bool]]:
    """Returns token ids of questions and answers, and a mask of the ids that belong to answers.

    Without a chat template every answer ends with a space, the stop string, a space and </s>, as published.

    Raises:
        ValueError: the chat template cannot be used.
    """
    if has_template(tokenizer):
        return templated(tokenizer, list(of_pairs(turns)), is_open=False)
    ids: list[int] = []
    is_answer: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        prompt = _question(tokenizer, question, is_first=number == 0)
        reply = [*_continued(tokenizer, "ASSISTANT:", f" {answer} {STOP} "), tokenizer.eos_token_id]
        ids += [*prompt, *reply]
        is_answer += [False] * len(prompt) + [True] * len(reply)
    return ids, is_answer


def chat_prompt(tokenizer: Any, turns: Sequence[tuple[MarkedText, str]], question: MarkedText) -> list[int]:
    """Returns token ids of a question after answered turns, up to the place of its answer.

    Without a chat template, those of a picture before a text are those of the publication.
    """
    if has_template(tokenizer):
        return templated(tokenizer, [*of_pairs(turns), question], is_open=True)[0]
    return conversation(tokenizer, turns)[0] + _question(tokenizer, question, is_first=not turns)


def stop_ids(tokenizer: Any) -> list[int]:
    """Returns the ids that end an answer, that of the chat template first; empty for a tokenizer without any."""
    of_template = [end_of_answer(tokenizer)] if has_template(tokenizer) else []
    of_text = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return list(dict.fromkeys(of_template + of_text))


def stop_strings(tokenizer: Any) -> tuple[str, ...]:
    """Returns the texts that end an answer: one without a chat template, none with one."""
    return () if has_template(tokenizer) else (STOP,)


def fewest_tokens(tokenizer: Any) -> int:
    """Returns the fewest tokens of an answer: the published number without a chat template, none with one."""
    return 0 if has_template(tokenizer) else PUBLISHED_FEWEST


def begin_id(tokenizer: Any) -> int | None:
    """Returns the id in front of a text, <s>; None where it only opens the messages of a chat template."""
    begin: int | None = tokenizer.bos_token_id
    if begin is None or not has_template(tokenizer):
        return begin
    return begin if begin in tokenizer("a").input_ids else None


def _question(tokenizer: Any, content: MarkedText, is_first: bool) -> list[int]:
    """Token ids of a question, up to the place of its answer. Line breaks separate its texts, pictures and videos."""
    start = [tokenizer.bos_token_id] if is_first and tokenizer.bos_token_id is not None else []
    text = f"{SYSTEM} USER: " if is_first else "USER: "
    ids: list[int] = []
    for number, part in enumerate(content):
        text += "\n" if number else ""
        if isinstance(part, str):
            text += part
        else:
            ids += [*_ids(tokenizer, text), part]
            text = ""
    after_media = "\n" if content and not isinstance(content[-1], str) else ""
    return [*start, *ids, *_ids(tokenizer, f"{text}{after_media} ASSISTANT:")]


def _continued(tokenizer: Any, before: str, text: str) -> list[int]:
    """Tokenizes a text as the continuation of another: some tokenizers add a space at the start of a text."""
    return _ids(tokenizer, before + text)[len(_ids(tokenizer, before)) :]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
