"""Consistency between two views: against a loop in float64, and as a part of a training step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.training.consistency import consistency_loss


def by_hand(log_probs: Tensor, lengths: Tensor) -> float:
    """Sum the divergences state by state and piece by piece."""
    half = len(lengths) // 2
    total = 0.0
    for row in range(half):
        for state in range(int(lengths[row])):
            a, b = log_probs[row, state].double(), log_probs[half + row, state].double()
            total += sum(float(a[k].exp() * (a[k] - b[k]) + b[k].exp() * (b[k] - a[k])) for k in range(len(a))) / 2
    return total


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 7, 5, generator=generator).log_softmax(-1), torch.tensor([7, 3, 0, 7, 3, 0])


def test_is_the_sum_of_both_divergences(views: tuple[Tensor, Tensor]) -> None:
    assert consistency_loss(*views).item() == pytest.approx(by_hand(*views), rel=1e-5)
    assert by_hand(*views) > 1


def test_views_that_agree_cost_nothing(views: tuple[Tensor, Tensor]) -> None:
    log_probs, lengths = views
    log_probs = log_probs[:3].repeat(2, 1, 1)
    assert consistency_loss(log_probs, lengths).item() == 0


def test_padding_counts_nothing(views: tuple[Tensor, Tensor]) -> None:
    log_probs, lengths = views
    changed = log_probs.clone()
    changed[1, 3:], changed[2], changed[5] = -50.0, -60.0, float(-torch.finfo(torch.float32).max)
    assert consistency_loss(changed, lengths) == consistency_loss(log_probs, lengths)


def test_targets_carry_no_gradient(views: tuple[Tensor, Tensor]) -> None:
    """The gradient on the logits is that of a cross-entropy to the other view, held fixed."""
    log_probs, lengths = views
    logits = log_probs.double().requires_grad_()
    consistency_loss(logits.log_softmax(-1), lengths).backward()
    fixed = log_probs.double().exp()
    other = torch.cat([fixed[3:], fixed[:3]])
    again = log_probs.double().requires_grad_()
    loss = sum(
        F.cross_entropy(again[row, : lengths[row]], other[row, : lengths[row]], reduction="sum")
        for row in range(6)
        if lengths[row]
    )
    (0.5 * torch.as_tensor(loss)).backward()
    assert logits.grad is not None and again.grad is not None
    torch.testing.assert_close(logits.grad, again.grad)


@pytest.mark.parametrize("lengths", [[7, 3, 7], [7, 3, 3, 7]])
def test_views_of_other_lengths_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        consistency_loss(torch.zeros(len(lengths), 7, 5), torch.tensor(lengths))
