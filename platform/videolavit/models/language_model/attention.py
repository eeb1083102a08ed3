"""Attention within packed documents, without a mask and without work for pairs in different documents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError
from .families import check_packable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "documents"
"""Name under which `transformers` knows the implementation."""

_CAUSAL = (-1, 0)


def attend_within_documents(model: PreTrainedModel) -> None:
    """Changes a model in place: its forward takes `ends`, by which `document_attention` keeps documents apart.

    Raises:
        ModelError: the model's attention cannot be replaced, or has a part that would be lost.
    """
    from transformers import AttentionInterface

    check_packable(model)

    AttentionInterface.register(ATTENTION_NAME, document_attention)
    model.set_attn_implementation(ATTENTION_NAME)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise ModelError(f"{type(model).__name__} cannot keep packed documents apart; set packing to false")


@contextlib.contextmanager
def ordinary_attention(model: PreTrainedModel) -> Iterator[None]:
    """Restores ordinary attention while the body runs, for decoding token by token."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ends: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Computes causal attention within each document.

    Args:
        module: Attention layer; unused.
        query: Queries, [batch, heads, length, channels].
        key: Keys, of the same shape, with as many heads or a divisor of them.
        value: Values, of the shape of the keys.
        attention_mask: Unused.
        ends: Ends of the documents in the flattened batch after a leading 0, int32 [documents + 1]. No document crosses
            a row, and they fill the batch.
        scaling: Factor of the scores; None for the inverse square root of the channels.
        sliding_window: Positions that a query sees, its own included; None for all before it.

    Returns:
        [batch, length, heads, channels], and None for the weights that `transformers` asks for.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        half = torch.get_autocast_dtype(device)
        query, key, value = query.to(half), key.to(half), value.to(half)
    if device == "cuda" and value.dtype != torch.float32:
        return _in_one_kernel(query, key, value, ends, scaling, sliding_window), None
    return _one_by_one(query, key, value, ends.tolist(), scaling, sliding_window), None


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Runs flash attention over documents of different lengths."""
    from torch.nn.attention.varlen import varlen_attn

    batch, _, length, _ = query.shape
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    gqa = query.shape[1] != key.shape[1]
    seen = _CAUSAL if sliding_window is None else (sliding_window - 1, 0)
    # No document is longer than a row. With this bound the lengths need not be copied from the device.
    mixed = varlen_attn(q, k, v, ends, ends, length, length, scale=scaling, window_size=seen, enable_gqa=gqa)
    assert isinstance(mixed, Tensor), "no further output was asked for"
    return mixed.unflatten(0, (batch, length))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends: list[int], scaling: float | None, sliding_window: int | None
) -> Tensor:
    batch, _, length, _ = query.shape
    gqa = query.shape[1] != key.shape[1]
    lengths = [end - start for start, end in pairwise(ends)]
    # A split has one gradient of the whole, where each slice would have its own.
    documents = [part.transpose(0, 1).flatten(1, 2).split(lengths, dim=1) for part in (query, key, value)]
    mixed = []
    for q, k, v in zip(*documents, strict=True):
        mask, size = None, q.shape[1]
        if sliding_window is not None and size > sliding_window:
            mask = torch.ones(size, size, dtype=torch.bool, device=q.device).tril().triu(1 - sliding_window)
        mixed.append(
            F.scaled_dot_product_attention(
                q[None], k[None], v[None], mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa
            )
        )
    return torch.cat(mixed, dim=2)[0].transpose(0, 1).unflatten(0, (batch, length))
