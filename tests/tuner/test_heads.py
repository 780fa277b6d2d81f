"""Heads of few classes beside heads of more."""

import torch
from torch.nn import functional as F

from softprompt.tuner import NarrowHead


def test_a_narrow_head_learns_as_it_would_without_filling():
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 2)
    narrow, states, labels = NarrowHead(plain, 5), torch.randn(4, 6), torch.tensor([0, 1, 1, 0])
    assert narrow.state_dict().keys() == plain.state_dict().keys() and narrow.weight.shape == (2, 6)
    given = [states.clone().requires_grad_() for _ in range(2)]
    scores = [head(x) for head, x in zip((plain, narrow), given, strict=True)]
    assert scores[1].shape == (4, 5) and scores[1][:, 2:].isneginf().all()
    for one in scores:
        F.cross_entropy(one, labels).backward()
    torch.testing.assert_close(scores[1].softmax(-1)[:, :2], scores[0].softmax(-1))
    torch.testing.assert_close(given[0].grad, given[1].grad)
    torch.testing.assert_close(plain.weight.grad, narrow.weight.grad)
    torch.testing.assert_close(plain.bias.grad, narrow.bias.grad)
