"""The prompt of understanding (reference 5.4)."""

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


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)
