"""What prompts begin with is read once: keys and values of their first ids, kept for prompts that begin alike."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import DecodeBatch

BLOCK = 32
"""Ids that are kept and found together."""


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """What is known of a prompt.

    Args:
        names: Of its blocks, known or not: a digest of all embeddings up to a block's end.
        known: Keys and values of its first ids, [2, layers, heads, ids, channels].
    """

    names: list[bytes]
    known: Tensor

    @property
    def length(self) -> int:
        """Ids that need not be read."""
        return self.known.shape[3]


class PrefixCache:
    """Beginnings of prompts; those that were not used for the longest time are forgotten.

    Args:
        capacity: Ids that are kept at most.
    """

    def __init__(self, capacity: int) -> None:
        self._most = capacity // BLOCK
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def find(self, prompt: Tensor, owner: str) -> CachedPrefix:
        """What is known of a prompt [length, hidden], and never all of it: its last id has to be read.

        Args:
            owner: Who asks. Owners share nothing: the time of an answer would tell what others have asked.
        """
        names = [owner.encode()]
        for end in range(BLOCK, min(len(prompt), self._most * BLOCK + 1), BLOCK):
            block = prompt[end - BLOCK : end].contiguous().view(torch.uint8).cpu().numpy()
            names.append(hashlib.blake2b(names[-1] + b"\0" + block.tobytes(), digest_size=32).digest())
        names = names[1:]
        found = []
        for name in names:
            if name not in self._blocks:
                break
            found.append(self._blocks[name])
        self._use(names[: len(found)])
        return CachedPrefix(names, torch.cat(found, dim=3) if found else prompt.new_zeros(2, 0, 0, 0, 0))

    def keep(self, beginning: CachedPrefix, reader: DecodeBatch, row: int) -> None:
        """Keeps what a reader has read in a row."""
        for number, name in enumerate(beginning.names):
            if name not in self._blocks:
                self._blocks[name] = reader.keys_and_values(row, number * BLOCK, (number + 1) * BLOCK)
        self._use(beginning.names)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def _use(self, names: list[bytes]) -> None:
        """Marks blocks as used; the first of them last, since the others are nothing without it."""
        for name in reversed(names):
            self._blocks.move_to_end(name)
