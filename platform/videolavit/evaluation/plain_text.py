"""Plain English that installed packages ship, and the loss of a language model on it."""

import hashlib
import importlib.metadata
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

HELD_OUT_EVERY = 4
"""One package in so many is held out."""

PARAGRAPHS = (200, 1500)
"""Shortest and longest text, in characters; neighbouring paragraphs are joined up to the longest."""

_LETTERS = 0.75
"""Smallest share of letters and spaces of a paragraph that counts as prose; tables and code have less."""


def package_texts() -> tuple[list[str], list[str]]:
    """Prose of the descriptions of installed packages: of most for training, of the others held out.

    Whether a package is held out follows from its name. A paragraph that several packages have is taken once.
    """
    training: list[str] = []
    held_out: list[str] = []
    seen: set[str] = set()
    found = {one.metadata["Name"]: one for one in importlib.metadata.distributions() if one.metadata["Name"]}
    for name in sorted(found):
        description = found[name].metadata.json.get("description")
        number = int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:4])
        texts = held_out if number % HELD_OUT_EVERY == 0 else training
        if isinstance(description, str):
            texts += _texts_of(description, seen)
    return training, held_out


def _texts_of(document: str, seen: set[str]) -> list[str]:
    """Texts of a document, without paragraphs that were seen before."""
    shortest, longest = PARAGRAPHS
    texts, current = [], ""
    for paragraph in map(str.strip, re.split(r"\n\s*\n", document)):
        prose = sum(one.isascii() and (one.isalpha() or one == " ") for one in paragraph)
        if paragraph in seen or len(paragraph) > longest or prose < _LETTERS * len(paragraph):
            continue
        seen.add(paragraph)
        if len(current) + len(paragraph) > longest:
            texts.append(current)
            current = ""
        current = f"{current}\n\n{paragraph}".strip()
    return [one for one in [*texts, current] if len(one) >= shortest]


@torch.inference_mode()
def text_loss(model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Mean loss of a causal language model on the tokens of texts behind their first, in nats."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count if count else math.nan
