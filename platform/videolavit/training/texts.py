"""Text tokenizer of a language model, as training uses it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """Ids of texts, without special tokens.

    Attributes:
        digest: Digest of all that decides the ids, 16 hexadecimal digits; None if the tokenizer cannot say it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.ids([""])  # sets what a call sets, before several threads share the tokenizer
        self.digest: str | None = None
        if tokenizer.is_fast:
            version = importlib.metadata.version("tokenizers")
            decides = json.dumps([version, tokenizer.split_special_tokens, tokenizer.backend_tokenizer.to_str()])
            self.digest = hashlib.sha256(decides.encode()).hexdigest()[:16]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of ids of each text."""
        return [len(ids) for ids in self.ids(texts)]
