"""Prompts of understanding: questions about images and videos, and conversations (docs/model.md, section 5.4)."""

from collections.abc import Sequence
from typing import Any, Literal

IMAGE, VIDEO = -200, -201
"""Placeholders among token ids for an image or a video."""

STOP = "\\n"
"""Stop string of answers: a backslash and an n, not a line break."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def understanding_prompt(tokenizer: Any, question: str, kind: Literal["image", "video"] | None) -> list[int]:
    """Returns token ids of the published prompt, with the placeholder `IMAGE` or `VIDEO` for the visual part.

    Args:
        tokenizer: Text tokenizer of `transformers`.
        question: Question.
        kind: Kind of the visual part; None for a question without one.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if kind is None:
        return start + _ids(tokenizer, f"{SYSTEM} USER: {question} ASSISTANT:")
    marker = IMAGE if kind == "image" else VIDEO
    return [*start, *_ids(tokenizer, f"{SYSTEM} USER: "), marker, *_ids(tokenizer, f"\n{question} ASSISTANT:")]


def conversation(
    tokenizer: Any, turns: Sequence[tuple[str, str]], kind: Literal["image", "video"] | None
) -> tuple[list[int], list[bool]]:
    """Returns token ids of questions and answers, and a mask of the ids that belong to answers.

    Every answer ends with a space, the stop string, a space and </s>, as published.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            prompt = understanding_prompt(tokenizer, question, kind)
        else:
            prompt = _ids(tokenizer, f"USER: {question} ASSISTANT:")
        reply = [*_continued(tokenizer, "ASSISTANT:", f" {answer} {STOP} "), tokenizer.eos_token_id]
        ids += [*prompt, *reply]
        is_answer += [False] * len(prompt) + [True] * len(reply)
    return ids, is_answer


def chat_prompt(
    tokenizer: Any, turns: Sequence[tuple[str, str]], question: str, kind: Literal["image", "video"] | None
) -> list[int]:
    """Returns token ids of a question after answered turns. The picture or video belongs to the first question."""
    if not turns:
        return understanding_prompt(tokenizer, question, kind)
    return conversation(tokenizer, turns, kind)[0] + _ids(tokenizer, f"USER: {question} ASSISTANT:")


def _continued(tokenizer: Any, before: str, text: str) -> list[int]:
    """Tokenizes a text as the continuation of another: some tokenizers add a space at the start of a text."""
    return _ids(tokenizer, before + text)[len(_ids(tokenizer, before)) :]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
