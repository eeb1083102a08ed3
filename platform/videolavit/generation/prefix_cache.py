"""Prefix cache: keys and values of the first tokens of prompts, reused for prompts with the same prefix."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoding import DecodeBatch

BLOCK_TOKENS = 32
"""Tokens of a block, the unit of the cache."""


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Cached part of a prompt.

    Args:
        block_hashes: Hash of all embeddings up to the end of each block of the prompt, whether cached or not.
        keys_values: Keys and values of the cached tokens, [2, layers, heads, tokens, channels].
    """

    block_hashes: list[bytes]
    keys_values: Tensor

    @property
    def length(self) -> int:
        """Tokens that need no prefill."""
        return self.keys_values.shape[3]


class PrefixCache:
    """Least-recently-used cache of blocks of prompt tokens.

    Args:
        capacity: Tokens that are kept at most.
    """

    def __init__(self, capacity: int) -> None:
        self._max_blocks = capacity // BLOCK_TOKENS
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def find(self, prompt: Tensor, owner: str) -> CachedPrefix:
        """Finds the cached prefix of a prompt [length, hidden]; at least the prompt's last token is not part of it.

        Args:
            owner: Owner of the request. Owners share no blocks: response times would reveal the prompts of others.
        """
        hashes = [owner.encode()]
        for end in range(BLOCK_TOKENS, min(len(prompt), self._max_blocks * BLOCK_TOKENS + 1), BLOCK_TOKENS):
            block = prompt[end - BLOCK_TOKENS : end].contiguous().view(torch.uint8).cpu().numpy()
            hashes.append(hashlib.blake2b(hashes[-1] + b"\0" + block.tobytes(), digest_size=32).digest())
        hashes = hashes[1:]
        found = []
        for block_hash in hashes:
            if block_hash not in self._blocks:
                break
            found.append(self._blocks[block_hash])
        self._mark_used(hashes[: len(found)])
        return CachedPrefix(hashes, torch.cat(found, dim=3) if found else prompt.new_zeros(2, 0, 0, 0, 0))

    def add(self, prefix: CachedPrefix, batch: DecodeBatch, row: int) -> None:
        """Adds the blocks of a prompt after its prefill in a row of a batch, and evicts the least recently used."""
        for number, block_hash in enumerate(prefix.block_hashes):
            if block_hash not in self._blocks:
                start = number * BLOCK_TOKENS
                self._blocks[block_hash] = batch.keys_values(row, start, start + BLOCK_TOKENS)
        self._mark_used(prefix.block_hashes)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def _mark_used(self, hashes: list[bytes]) -> None:
        """Marks blocks as used, the first block last: the later ones are useless without it."""
        for block_hash in reversed(hashes):
            self._blocks.move_to_end(block_hash)
