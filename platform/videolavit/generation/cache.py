"""A key-value cache that an id is written into in place, and whose rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Fewest ids that there is room for when a cache has grown."""


class RowsCache(Cache):
    """Keys and values of a batch whose rows have their padding on the left."""

    layers: list[GrowingLayer]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[GrowingLayer() for _ in range(config.num_hidden_layers)])

    def join(self, other: RowsCache) -> None:
        """Takes over the rows of another cache, behind its own."""
        for own, new in zip(self.layers, other.layers, strict=True):
            own.join(new)

    def keep(self, rows: Tensor, start: int) -> None:
        """Forgets all rows but these, and what is before a position."""
        for layer in self.layers:
            layer.keep(rows, start)


class GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, length, channels] at the front of larger tensors.

    The usual layer copies all that was read before for each further id.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends, and returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold([key_states], [value_states])
            return self.keys, self.values
        before, new = self.keys.shape[2], key_states.shape[2]
        if before + new > self._keys.shape[2]:
            self._hold([self.keys], [self.values], new)
        self._keys[:, :, before : before + new] = key_states
        self._values[:, :, before : before + new] = value_states
        self._show(before + new)
        return self.keys, self.values

    def join(self, other: GrowingLayer) -> None:
        """Rows of another layer behind the own ones; all end at the same place."""
        self._hold([self.keys, other.keys], [self.values, other.values])

    def keep(self, rows: Tensor, start: int) -> None:
        """Only these rows, from a position on."""
        self._hold([self.keys[:, :, start:][rows]], [self.values[:, :, start:][rows]])

    def _hold(self, keys: Sequence[Tensor], values: Sequence[Tensor], new: int = 0) -> None:
        """Copies to tensors with zeros in front of shorter rows, and room for `new` ids and more."""
        length = max(part.shape[2] for part in keys)
        room = new + max(length // 4, ROOM)
        self._keys, self._values = (_behind_each_other(parts, length, room) for parts in (keys, values))
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def _behind_each_other(parts: Sequence[Tensor], length: int, room: int) -> Tensor:
    """Rows [n, heads, up to length, channels] as one tensor; all end at `length`, and there is room behind it."""
    _, heads, _, channels = parts[0].shape
    held = parts[0].new_zeros(sum(map(len, parts)), heads, length + room, channels)
    for rows, part in zip(held.split([len(part) for part in parts]), parts, strict=True):
        rows[:, :, length - part.shape[2] : length] = part
    return held
