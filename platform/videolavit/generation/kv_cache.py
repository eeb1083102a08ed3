"""KV cache that appends tokens in place, and whose rows can be added and removed between decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

SPARE_TOKENS = 64
"""Smallest number of further tokens for which a grown cache reserves memory."""


class BatchKVCache(Cache):
    """Keys and values of a batch whose rows are padded on the left."""

    layers: list[BatchKVLayer]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[BatchKVLayer() for _ in range(config.num_hidden_layers)])

    def load_prefixes(self, prefixes: Sequence[Tensor]) -> None:
        """Fills an empty cache with a prefix of each row, [2, layers, heads, tokens, channels], aligned at the end."""
        for number, layer in enumerate(self.layers):
            layer.load_prefixes([one[:, number] if one.shape[3] else None for one in prefixes])

    def close_gaps(self, lengths: Sequence[int], end: int, gaps: Sequence[int]) -> None:
        """Moves the prefix of each row up to its prompt, over the padding between the two.

        Args:
            lengths: Tokens of each row's prefix.
            end: Position where all prefixes end.
            gaps: Padding behind each row's prefix, in tokens.
        """
        moves = [(row, *one) for row, one in enumerate(zip(lengths, gaps, strict=True)) if all(one)]
        for layer in self.layers:
            for row, length, gap in moves:
                layer.shift(row, end - length, end, gap)

    def keys_values(self, row: int, start: int, end: int) -> Tensor:
        """Copies keys and values of a row, [2, layers, heads, tokens, channels]."""
        return torch.stack([layer.keys_values(row, start, end) for layer in self.layers], dim=1)

    def append_rows(self, other: BatchKVCache) -> None:
        """Adds the rows of another cache behind the rows of this one."""
        for own, new in zip(self.layers, other.layers, strict=True):
            own.append_rows(new)

    def keep_rows(self, rows: Sequence[int], unused: int) -> None:
        """Keeps only the given rows, in the given order, without their first `unused` positions."""
        moved = [(row, to) for to, row in enumerate(rows) if row != to]
        places = torch.tensor(moved, device=self.layers[0].device).unbind(1) if moved else None
        for layer in self.layers:
            layer.keep_rows(len(rows), places, unused)


class BatchKVLayer(DynamicLayer):
    """Keys and values [rows, heads, length, channels] of one layer, as views into larger buffers.

    The library's own layer copies all keys and values for each appended token. This one appends tokens and rows where
    its buffer has space, and copies only when it has none.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values of new tokens, and returns those of all tokens."""
        new = key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows, self._start, self._end = len(key_states), 0, 0
            self._buffer = _allocate(key_states, self._rows, new)
        elif self._end + new > self._buffer.shape[3]:
            self._grow(self._rows, self._end - self._start, new)
        for buffer, states in zip(self._buffer, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end : self._end + new] = states
        self._end += new
        self._set_views()
        return self.keys, self.values

    def load_prefixes(self, prefixes: Sequence[Tensor | None]) -> None:
        """Fills an empty layer with a prefix of each row, [2, heads, tokens, channels] or None, aligned at the end."""
        present = [one for one in prefixes if one is not None]
        (_, heads, _, channels), self._end = present[0].shape, max(one.shape[2] for one in present)
        self.lazy_initialization(*present[0])
        self._rows, self._start = len(prefixes), 0
        self._buffer = _allocate(present[0].new_empty(self._rows, heads, 0, channels), self._rows, self._end)
        for row, one in enumerate(prefixes):
            if one is not None:
                self._buffer[:, row, :, self._end - one.shape[2] : self._end] = one
        self._set_views()

    def shift(self, row: int, start: int, end: int, by: int) -> None:
        """Moves positions `start` to `end` of a row to the right."""
        window = self._window()[:, row]
        window[:, :, start + by : end + by] = window[:, :, start:end].clone()

    def keys_values(self, row: int, start: int, end: int) -> Tensor:
        """Keys and values of positions `start` to `end` of a row, [2, heads, tokens, channels]."""
        return self._window()[:, row, :, start:end]

    def append_rows(self, other: BatchKVLayer) -> None:
        """Adds the rows of another layer, aligned at the end; shorter rows are padded with zeros."""
        own, new = self._end - self._start, other._end - other._start
        rows, length = self._rows + other._rows, max(own, new)
        if rows > self._buffer.shape[1] or length > self._end:
            self._grow(rows, length)
        start = self._end - length
        self._buffer[:, : self._rows, :, start : self._end - own] = 0
        self._buffer[:, self._rows : rows, :, start : self._end - new] = 0
        self._buffer[:, self._rows : rows, :, self._end - new : self._end] = other._window()
        self._rows, self._start = rows, start
        self._set_views()

    def keep_rows(self, rows: int, moved: Sequence[Tensor] | None, unused: int) -> None:
        """Keeps the first `rows` rows, after some were moved (from, to), without their first `unused` positions."""
        self._start += unused
        if moved is not None:
            before, after = moved
            window = self._buffer[:, :, :, self._start : self._end]
            window[:, after] = window[:, before]
        self._rows = rows
        self._set_views()

    def _grow(self, rows: int, length: int, new: int = 0) -> None:
        """Copies to larger buffers: `length` positions up to the present end, and space for `new` more tokens."""
        before, own = self._window(), self._end - self._start
        self._buffer = _allocate(before[0], rows, length + new)
        self._start, self._end = length - own, length
        self._buffer[:, : self._rows, :, self._start : self._end] = before

    def _window(self) -> Tensor:
        """The part of the buffer that is in use, [2, rows, heads, length, channels]."""
        return self._buffer[:, : self._rows, :, self._start : self._end]

    def _set_views(self) -> None:
        self.keys, self.values = self._window()


def _allocate(like: Tensor, rows: int, length: int) -> Tensor:
    """Zeroed keys and values with space for a quarter more tokens, at least `SPARE_TOKENS`."""
    _, heads, _, channels = like.shape
    return like.new_zeros(2, rows, heads, length + max(length // 4, SPARE_TOKENS), channels)
