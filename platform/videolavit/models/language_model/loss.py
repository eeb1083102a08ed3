"""Cross-entropy of a large vocabulary without all of its logits at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOGITS = 1 << 24
"""Logits that are held at a time, 67 MB in float32; with the published vocabulary those of 339 positions."""


def token_losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Computes the cross-entropy of each position, float32 [n], from hidden states [n, width] and target ids [n].

    More than `LOGITS` logits are computed piece by piece, and again in the backward pass: in float32 by PyTorch,
    position by position. In half precision PyTorch would round the losses to it, and add up a gradient of the whole
    head for each piece; there the vocabulary is cut instead.
    """
    if type(head) is not nn.Linear or len(hidden) * head.out_features <= LOGITS:  # adapters change what a head computes
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")
    weight: Tensor = head.weight
    bias: Tensor | None = head.bias
    if torch.is_autocast_enabled(hidden.device.type):
        half = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(half), weight.to(half), bias if bias is None else bias.to(half)
    if hidden.dtype == weight.dtype == torch.float32:
        options = nn.LinearCrossEntropyOptions(
            batch_chunk_size=max(LOGITS // head.out_features, 1), chunking_method=None, acc_policy="compact"
        )
        return F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, reduction="none", options=options)
    size = max(LOGITS // len(hidden), 1)
    losses: Tensor = _ByVocabulary.apply(hidden, weight, bias, targets, size)  # type: ignore[no-untyped-call]
    return losses


class _ByVocabulary(torch.autograd.Function):
    """Cross-entropy of each position, float32 [n], from pieces of the vocabulary.

    Every row of the head's gradient belongs to one piece, and is written once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, size: int) -> Tensor:
        normalizer = torch.full_like(targets, -torch.inf, dtype=torch.float32)
        wanted = torch.zeros_like(normalizer)
        for piece, ids, inside in _pieces(len(weight), targets, size):
            logits = _logits(hidden, weight, bias, piece)
            normalizer = torch.logaddexp(normalizer, logits.logsumexp(dim=1))
            wanted += logits.gather(1, ids).squeeze(1) * inside
        ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
        ctx.size = size
        return normalizer - wanted

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (of_losses,) = gradients
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for piece, ids, inside in _pieces(len(weight), targets, ctx.size):
            shares = _logits(hidden, weight, bias, piece).sub_(normalizer[:, None]).exp_().mul_(of_losses[:, None])
            shares.scatter_add_(1, ids, -(of_losses * inside)[:, None])
            of_logits = shares.to(hidden.dtype)
            of_hidden += of_logits @ weight[piece]
            if of_weight is not None:
                of_weight[piece] = of_logits.T @ hidden
            if of_bias is not None:
                of_bias[piece] = shares.sum(dim=0)
        return of_hidden.to(hidden.dtype), of_weight, of_bias, None, None


def _pieces(vocabulary: int, targets: Tensor, size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields slices of the vocabulary, the targets in each, [n, 1], and which of them lie in it, bool [n]."""
    for start in range(0, vocabulary, size):
        end = min(start + size, vocabulary)
        inside = (targets >= start) & (targets < end)
        yield slice(start, end), (targets - start).clamp(0, end - start - 1)[:, None], inside


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, piece: slice) -> Tensor:
    return F.linear(hidden, weight[piece], None if bias is None else bias[piece]).float()
