"""The prompt of understanding (docs/model.md, section 5.4)."""

from collections.abc import Sequence
from typing import Any, Literal

IMAGE, VIDEO = -200, -201
"""Stand-ins among token ids for where an image or a video goes."""

STOP = "\\n"
"""Ends an answer: a backslash and an n, not a line break."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def understanding_prompt(tokenizer: Any, question: str, kind: Literal["image", "video"] | None) -> list[int]:
    """Token ids of the published prompt, with `IMAGE` or `VIDEO` where the visual part goes.

    Args:
        tokenizer: Of `transformers`.
        kind: What the question is about; None for a question without a picture.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if kind is None:
        return start + _ids(tokenizer, f"{SYSTEM} USER: {question} ASSISTANT:")
    marker = IMAGE if kind == "image" else VIDEO
    return [*start, *_ids(tokenizer, f"{SYSTEM} USER: "), marker, *_ids(tokenizer, f"\n{question} ASSISTANT:")]


def conversation(
    tokenizer: Any, turns: Sequence[tuple[str, str]], kind: Literal["image", "video"] | None
) -> tuple[list[int], list[bool]]:
    """Token ids of questions and their answers, and which of them a model is to write.

    Every answer ends with a space, the stop string, a space and </s>, as published (docs/model.md, section 5.4).
    """
    ids: list[int] = []
    written: list[bool] = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            prompt = understanding_prompt(tokenizer, question, kind)
        else:
            prompt = _ids(tokenizer, f"USER: {question} ASSISTANT:")
        reply = [*_continued(tokenizer, "ASSISTANT:", f" {answer} {STOP} "), tokenizer.eos_token_id]
        ids += [*prompt, *reply]
        written += [False] * len(prompt) + [True] * len(reply)
    return ids, written


def chat_prompt(
    tokenizer: Any, turns: Sequence[tuple[str, str]], question: str, kind: Literal["image", "video"] | None
) -> list[int]:
    """Token ids of a question behind turns that were answered; the picture or video belongs to the first of all."""
    if not turns:
        return understanding_prompt(tokenizer, question, kind)
    return conversation(tokenizer, turns, kind)[0] + _ids(tokenizer, f"USER: {question} ASSISTANT:")


def _continued(tokenizer: Any, before: str, text: str) -> list[int]:
    """Ids of a text behind another: some tokenizers put a space before whatever comes first."""
    return _ids(tokenizer, before + text)[len(_ids(tokenizer, before)) :]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
