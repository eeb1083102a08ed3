"""Cross-entropy of a large vocabulary: equal to that of all logits, in a fraction of their memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.loss import POSITIONS, VOCABULARY, measure, whole_losses
from benchmarks.shared import in_own_process
from videolavit.models.language_model import loss
from videolavit.models.language_model.loss import token_losses

Losses = Callable[[nn.Module, Tensor, Tensor], Tensor]


def made(positions: int, width: int, vocabulary: int, bias: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states and targets, those at both ends of the vocabulary among them."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=bias)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) / width**0.5)
    hidden = torch.randn(positions, width, generator=generator)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    targets[0], targets[-1] = 0, vocabulary - 1
    return head, hidden, targets


def results(losses: Losses, head: nn.Linear, hidden: Tensor, targets: Tensor, precision: torch.dtype) -> list[Tensor]:
    """Losses, and gradients of a weighted sum of them."""
    hidden = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = losses(head, hidden, targets)
        weights = torch.linspace(0.5, 1.5, len(targets)) / len(targets)
        (found * weights).sum().backward()
    gradients = [value.grad for value in (hidden, *head.parameters())]
    head.zero_grad()
    return [found.detach(), *(one for one in gradients if one is not None)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_equal_those_of_all_logits(
    precision: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that do not divide positions and vocabulary; within the noise of the precision."""
    monkeypatch.setattr(loss, "LOGITS", 1000)
    case = made(45, 16, 301, bias)
    ours, theirs = (results(one, *case, precision) for one in (token_losses, whole_losses))
    assert len(ours) == len(theirs) == (4 if bias else 3)
    assert ours[0].dtype == torch.float32
    exact = precision == torch.float32
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5 if exact else 2e-2, atol=1e-6 if exact else 2e-4)


def test_losses_of_half_precision_are_not_rounded_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS", 1000)
    case = made(45, 16, 301)
    (found, *_), (exact, *_) = (results(one, *case, torch.bfloat16) for one in (token_losses, whole_losses))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    assert not found.equal(found.bfloat16().float())


def test_a_frozen_head_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS", 1000)
    head, hidden, targets = made(45, 16, 301)
    head.requires_grad_(False)
    for precision in (torch.float32, torch.bfloat16):
        ours, theirs = (results(one, head, hidden, targets, precision) for one in (token_losses, whole_losses))
        assert len(ours) == 2
        torch.testing.assert_close(ours[1], theirs[1], rtol=2e-2, atol=2e-4)


def test_memory_falls_to_an_eighth() -> None:
    """Peaks of processes, for the published vocabulary and two rows."""
    goal = in_own_process(measure, "whole", "float32", limit=200)[0] / 8
    assert goal > POSITIONS * VOCABULARY * 4 / 8  # the logits alone
    for precision in ("float32", "bfloat16"):
        assert in_own_process(measure, "pieces", precision, limit=200)[0] < goal, precision
