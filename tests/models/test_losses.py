"""The loss of a text's label, against torch's own and by hand."""

from __future__ import annotations

import pytest
import torch

from softprompt.models.losses import label_loss


def test_one_class_with_weights_is_their_mean() -> None:
    logits, labels, weights = torch.randn(4, 3), torch.tensor([0, 2, 2, 1]), torch.tensor([1.0, 2.0, 5.0])
    each = -logits.log_softmax(-1)[torch.arange(4), labels]
    assert label_loss(logits, labels, None).item() == pytest.approx(each.mean().item(), rel=1e-6)
    expected = (each * weights[labels]).mean()
    assert label_loss(logits, labels, None, weights).item() == pytest.approx(expected.item(), rel=1e-6)


def test_flags_are_told_each_by_itself() -> None:
    logits, flags, weights = torch.randn(4, 3), torch.randint(2, (4, 3)), torch.tensor([1.0, 2.0, 5.0])
    share = logits.sigmoid()
    expected = -(weights * flags * share.log() + (1 - flags) * (1 - share).log()).mean()
    found = label_loss(logits, flags, "multi_label_classification", weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_numbers_are_told_by_their_square() -> None:
    logits, numbers = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 4.0], dtype=torch.float64)
    assert label_loss(logits, numbers, "regression").item() == pytest.approx((0.25 + 4) / 2)
