"""Conversations in the words of a tokenizer's own chat template, whose markers a text cannot forge."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

SLOT_EDGE = "\u2003"
"""Space around a placeholder: a template that strips its messages removes it."""

_SLOT = re.compile(f"({SLOT_EDGE}?)\ue000(\\d+)\ue001{SLOT_EDGE}?")
"""Placeholder of a message in what a template wrote."""

_SPACES = re.compile(r" *\Z")


def has_template(tokenizer: Any) -> bool:
    """Tells whether a tokenizer brings a chat template; without one the published prompt is used."""
    return bool(getattr(tokenizer, "chat_template", None))


def templated(tokenizer: Any, messages: Sequence[Sequence[str | int]], is_open: bool) -> tuple[list[int], list[bool]]:
    """Returns token ids of a conversation, and a mask of the ids that belong to answers and end them.

    The template is applied to placeholders. Special tokens are read in its own words only: in a message they are
    letters.

    Args:
        tokenizer: Tokenizer with a chat template.
        messages: Questions and answers in turn, as texts and placeholders of pictures and videos.
        is_open: True if an answer follows.

    Raises:
        ValueError: the template cannot be applied, or leaves out a message or the end of an answer.
    """
    rendered = _render(tokenizer, len(messages), is_open)
    specials = sorted(_special_ids(tokenizer), key=len, reverse=True)
    special = re.compile(f"({'|'.join(map(re.escape, specials))})") if specials else re.compile("(?!)")
    writer, place = _Writer(tokenizer), 0
    found: list[int] = []
    for slot in _SLOT.finditer(rendered):
        _write_template(writer, rendered[place : slot.start()], special)
        number, place = int(slot[2]), slot.end()
        found.append(number)
        message = messages[number]
        if not slot[1]:
            message = _stripped(message)
        if number % 2:
            writer.answer("".join(map(str, message)))
        else:
            writer.question(message)
    _write_template(writer, rendered[place:], special)
    if found != list(range(len(messages))):
        raise ValueError("the chat template of the tokenizer leaves out messages, or changes their order")
    return writer.finish()


def end_of_answer(tokenizer: Any) -> int:
    """Returns the id with which a chat template ends an answer. Raises ValueError as `templated` does."""
    ids, is_answer = templated(tokenizer, [["?"], ["!"]], is_open=False)
    return [token for token, mask in zip(ids, is_answer, strict=True) if mask][-1]


def _render(tokenizer: Any, count: int, is_open: bool) -> str:
    from jinja2 import TemplateError

    roles = ("user", "assistant")
    messages = [
        {"role": roles[number % 2], "content": f"{SLOT_EDGE}\ue000{number}\ue001{SLOT_EDGE}"} for number in range(count)
    ]
    try:
        # models that think aloud would otherwise begin an answer in another way than the answers that they learn
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=is_open, enable_thinking=False
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(f"the chat template of the tokenizer fails: {error}") from None


def _special_ids(tokenizer: Any) -> dict[str, int]:
    added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _stripped(message: Sequence[str | int]) -> list[str | int]:
    """Removes white space at both ends of a message, as its template does."""
    parts = list(message)
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return parts


def _write_template(writer: "_Writer", text: str, special: re.Pattern[str]) -> None:
    for number, part in enumerate(special.split(text)):
        if number % 2:
            writer.special(part)
        else:
            writer.text(part)


class _Writer:
    """Token ids of a conversation, from its pieces in order."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special_ids = _special_ids(tokenizer)
        self._anchor = "" if _reads_parts_alone(tokenizer, self._special_ids) else "\n"
        self._ids: list[int] = []
        self._is_answer: list[bool] = []
        self._before = ""
        self._reply: str | None = None

    def text(self, text: str) -> None:
        """Adds words of the template. Those between an answer and its end belong to the answer."""
        if self._reply is None:
            self._before += text
        else:
            self._reply += text

    def special(self, token: str) -> None:
        """Adds a special token. It ends an open answer, which learns to say it."""
        ends_answer = self._reply is not None
        self._flush()
        self._add([self._special_ids[token]], ends_answer)

    def question(self, message: Sequence[str | int]) -> None:
        """Adds a message of the user, with a line break between its parts and behind pictures and videos."""
        if self._reply is not None:
            raise ValueError("the chat template of the tokenizer ends no answer with a special token")
        for number, part in enumerate(message):
            self._before += "\n" if number else ""
            if isinstance(part, str):
                self._before += part
            else:
                self._flush()
                self._add([part], False)
        if message and not isinstance(message[-1], str):
            self._before += "\n"

    def answer(self, text: str) -> None:
        """Adds an answer. Spaces in front of it belong to it: a prompt for an answer ends without them."""
        spaces = _SPACES.search(self._before)
        assert spaces is not None, "no space is a match too"
        self._before = self._before[: spaces.start()]
        self._reply = spaces[0] + text

    def finish(self) -> tuple[list[int], list[bool]]:
        """Returns the ids and the mask. An answer that the template leaves open ends with the end of a text."""
        if self._reply is not None:
            if self._tokenizer.eos_token_id is None:
                raise ValueError("the tokenizer has neither a chat template that ends an answer nor an eos_token")
            self._flush()
            self._add([self._tokenizer.eos_token_id], True)
        self._flush()
        return self._ids, self._is_answer

    def _flush(self) -> None:
        anchor = self._anchor if self._ids else ""
        before = self._encode(anchor + self._before)
        self._add(before[len(self._encode(anchor)) :], False)
        if self._reply is not None:
            whole = self._encode(anchor + self._before + self._reply)
            self._add(whole[len(before) :], True)
        self._before, self._reply = "", None

    def _add(self, ids: Sequence[int], is_answer: bool) -> None:
        self._ids += ids
        self._is_answer += [is_answer] * len(ids)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def _reads_parts_alone(tokenizer: Any, special_ids: dict[str, int]) -> bool:
    """Tells whether a text behind a special token has the ids that it has alone; some tokenizers add a space."""
    for token, index in special_ids.items():
        behind = tokenizer(f"{token}a", add_special_tokens=False, split_special_tokens=False).input_ids
        if behind[:1] == [index]:
            return bool(behind[1:] == tokenizer("a", add_special_tokens=False).input_ids)
    return True


def of_pairs(turns: Sequence[tuple[Sequence[str | int], str]]) -> Iterator[Sequence[str | int]]:
    """Yields the questions and answers of turns one after the other."""
    for question, answer in turns:
        yield question
        yield [answer]
