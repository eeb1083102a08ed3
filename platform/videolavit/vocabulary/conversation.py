"""Prompts of understanding: questions about images and videos, and conversations (docs/model.md, section 5.4)."""

from collections.abc import Sequence
from typing import Any

IMAGE, VIDEO = -200, -201
"""Placeholders among token ids for an image or a video."""

STOP = "\\n"
"""Stop string of answers: a backslash and an n, not a line break."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


MarkedText = Sequence[str | int]
"""Message of the user: texts, and the placeholders `IMAGE` and `VIDEO`, in the order in which they stand."""


def conversation(tokenizer: Any, turns: Sequence[tuple[MarkedText, str]]) -> tuple[list[int], list[bool]]:
    """Returns token ids of questions and answers, and a mask of the ids that belong to answers.

    Every answer ends with a space, the stop string, a space and </s>, as published.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        prompt = _question(tokenizer, question, is_first=number == 0)
        reply = [*_continued(tokenizer, "ASSISTANT:", f" {answer} {STOP} "), tokenizer.eos_token_id]
        ids += [*prompt, *reply]
        is_answer += [False] * len(prompt) + [True] * len(reply)
    return ids, is_answer


def chat_prompt(tokenizer: Any, turns: Sequence[tuple[MarkedText, str]], question: MarkedText) -> list[int]:
    """Returns token ids of a question after answered turns; for a picture before a text, those of the publication."""
    return conversation(tokenizer, turns)[0] + _question(tokenizer, question, is_first=not turns)


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
