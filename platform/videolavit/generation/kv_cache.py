"""A key-value cache that an id is written into in place, and whose rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Fewest ids that there is room for when a cache has grown."""


class RowsCache(Cache):
    """Keys and values of a batch whose rows have their padding on the left."""

    layers: list[RowsLayer]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[RowsLayer() for _ in range(config.num_hidden_layers)])

    def begin(self, known: Sequence[Tensor]) -> None:
        """Starts from keys and values of each row, [2, layers, heads, ids, channels], which all end at one place."""
        for number, layer in enumerate(self.layers):
            layer.begin([one[:, number] if one.shape[3] else None for one in known])

    def close(self, lengths: Sequence[int], end: int, gaps: Sequence[int]) -> None:
        """Moves the first ids of each row, so many that end there, over the gap behind them."""
        moves = [(row, *one) for row, one in enumerate(zip(lengths, gaps, strict=True)) if all(one)]
        for layer in self.layers:
            for row, length, gap in moves:
                layer.shift(row, end - length, end, gap)

    def read(self, row: int, start: int, end: int) -> Tensor:
        """A copy of keys and values of a row, [2, layers, heads, ids, channels]."""
        return torch.stack([layer.read(row, start, end) for layer in self.layers], dim=1)

    def join(self, other: RowsCache) -> None:
        """Takes over the rows of another cache, behind its own."""
        for own, new in zip(self.layers, other.layers, strict=True):
            own.join(new)

    def keep(self, rows: Sequence[int], unused: int) -> None:
        """Forgets all rows but these, in this order, and so many first ids of each."""
        moved = [(row, to) for to, row in enumerate(rows) if row != to]
        places = torch.tensor(moved, device=self.layers[0].device).unbind(1) if moved else None
        for layer in self.layers:
            layer.keep(len(rows), places, unused)


class RowsLayer(DynamicLayer):
    """Keys and values [rows, heads, length, channels], which are a part of larger tensors.

    The usual layer copies all that was read before for each further id. This one writes ids and rows where there is
    room, and copies all when there is none.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends, and returns all."""
        new = key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows, self._start, self._end = len(key_states), 0, 0
            self._held = _zeros(key_states, self._rows, new)
        elif self._end + new > self._held.shape[3]:
            self._move(self._rows, self._end - self._start, new)
        for held, states in zip(self._held, (key_states, value_states), strict=True):
            held[: self._rows, :, self._end : self._end + new] = states
        self._end += new
        self._show()
        return self.keys, self.values

    def begin(self, known: Sequence[Tensor | None]) -> None:
        """Starts from keys and values of each row, [2, heads, ids, channels] or None, which all end at one place."""
        there = [one for one in known if one is not None]
        (_, heads, _, channels), self._end = there[0].shape, max(one.shape[2] for one in there)
        self.lazy_initialization(*there[0])
        self._rows, self._start = len(known), 0
        self._held = _zeros(there[0].new_empty(self._rows, heads, 0, channels), self._rows, self._end)
        for row, one in enumerate(known):
            if one is not None:
                self._held[:, row, :, self._end - one.shape[2] : self._end] = one
        self._show()

    def shift(self, row: int, start: int, end: int, by: int) -> None:
        """Moves some ids of a row behind."""
        window = self._shown()[:, row]
        window[:, :, start + by : end + by] = window[:, :, start:end].clone()

    def read(self, row: int, start: int, end: int) -> Tensor:
        """Keys and values of some ids of a row, [2, heads, ids, channels]."""
        return self._shown()[:, row, :, start:end]

    def join(self, other: RowsLayer) -> None:
        """Rows of another layer behind the own ones; all end at the same place, with zeros in front of shorter ones."""
        own, new = self._end - self._start, other._end - other._start
        rows, length = self._rows + other._rows, max(own, new)
        if rows > self._held.shape[1] or length > self._end:
            self._move(rows, length)
        start = self._end - length
        self._held[:, : self._rows, :, start : self._end - own] = 0
        self._held[:, self._rows : rows, :, start : self._end - new] = 0
        self._held[:, self._rows : rows, :, self._end - new : self._end] = other._shown()
        self._rows, self._start = rows, start
        self._show()

    def keep(self, rows: int, moved: Sequence[Tensor] | None, unused: int) -> None:
        """Only so many rows, after some were moved (from, to), without so many of their first ids."""
        self._start += unused
        if moved is not None:
            before, after = moved
            window = self._held[:, :, :, self._start : self._end]
            window[:, after] = window[:, before]
        self._rows = rows
        self._show()

    def _move(self, rows: int, length: int, new: int = 0) -> None:
        """Copies to tensors for so many rows and ids, the last of which are those that are there, and `new` ones."""
        before, own = self._shown(), self._end - self._start
        self._held = _zeros(before[0], rows, length + new)
        self._start, self._end = length - own, length
        self._held[:, : self._rows, :, self._start : self._end] = before

    def _shown(self) -> Tensor:
        return self._held[:, : self._rows, :, self._start : self._end]

    def _show(self) -> None:
        self.keys, self.values = self._shown()


def _zeros(like: Tensor, rows: int, length: int) -> Tensor:
    """For keys and values of so many rows and ids, with room for more ids."""
    _, heads, _, channels = like.shape
    return like.new_zeros(2, rows, heads, length + max(length // 4, ROOM), channels)
