"""TSLoss of three points by hand, its gradient, and what it does to a prompt."""

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model

import softprompt
from house.clouds import made, seen
from house.families import LLAMA, P, backbone, config
from softprompt.objectives import TSLoss, objective

TRIANGLE = [[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]  # sides 3, 4 and 5


def softmin(values, alpha):
    weights = [math.exp(-alpha * v) for v in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def by_hand(sides, alpha, l1, l2):
    """TSLoss of three points, one number at a time; ``sides`` are the distances (0, 1), (0, 2), (1, 2)."""
    near = [softmin(pair, alpha) for pair in (sides[:2], (sides[0], sides[2]), sides[1:])]  # j = i is no neighbour
    mean = sum(near) / 3
    connectivity = sum((d - mean) ** 2 for d in near) / 3
    low, high = softmin(sides, alpha), softmin(sides, -alpha)
    excess = [max(low - d, 0) + max(d - high, 0) for d in sides]
    return l1 * connectivity + l2 * sum(excess) / 3


@pytest.mark.parametrize("scale_free", [False, True])
def test_ts_loss_of_three_points(scale_free):
    sides = [3.0, 4.0, 5.0]
    if scale_free:
        sides = [side / 4 for side in sides]
    loss = made(TSLoss, l1=0.3, l2=0.7, alpha=0.9, scale_free=scale_free)(seen(torch.tensor(TRIANGLE)))
    assert loss.item() == pytest.approx(by_hand(sides, 0.9, 0.3, 0.7), rel=1e-5)
    for part in ("l1", "l2"):  # both parts act
        alone = made(TSLoss, **{"l1": 0.3, "l2": 0.7, "alpha": 0.9, "scale_free": scale_free, part: 0.0})
        assert abs(alone(seen(torch.tensor(TRIANGLE))).item() - loss.item()) > 1e-4


def test_a_point_is_not_its_own_neighbour():
    """With j = i every d_i would be near 0 and even an uneven cloud would look even."""
    cloud = torch.tensor([[0.0], [1.0], [1.1], [5.0]])
    assert made(TSLoss, l2=0.0, l1=1.0, alpha=50.0, scale_free=False)(seen(cloud)) > 1


@pytest.mark.parametrize("points", [2, 5])
def test_gradients_of_ts_loss(points, monkeypatch):
    """Connectivity by finite differences; redundancy with the band held where it is."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)  # objectives compute in float32
    torch.manual_seed(0)
    cloud = torch.randn(points, 3, dtype=torch.float64, requires_grad=True)
    connectivity, redundancy = (made(TSLoss, alpha=1.3, scale_free=False, **{part: 0.0}) for part in ("l2", "l1"))
    assert torch.autograd.gradcheck(lambda x: connectivity(seen(x)), cloud)
    sides = torch.pdist(cloud)
    low, high = (softmin(sides.tolist(), alpha) for alpha in (1.3, -1.3))
    held = 0.1 * ((low - sides).clamp(min=0) + (sides - high).clamp(min=0)).mean()
    torch.testing.assert_close(*(torch.autograd.grad(loss, cloud)[0] for loss in (redundancy(seen(cloud)), held)))


def test_minimising_ts_loss_evens_a_prompt_out():
    """A short optimisation: nearest distances, which start uneven, come together."""
    torch.manual_seed(1)
    cloud = torch.cat([torch.randn(6, 4), 0.05 * torch.randn(6, 4)]).requires_grad_()
    loss, optimizer = made(TSLoss, l1=1.0, l2=0.0), torch.optim.Adam([cloud], 0.05)
    first = loss(seen(cloud)).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(seen(cloud)).backward()
        optimizer.step()
    assert loss(seen(cloud)).item() < 0.1 * first


def test_tsloss_is_prompt_tuning_with_one_more_term():
    made_config = softprompt.tsloss(P, l1=0.2, share=None, objectives=[objective("l2")])
    assert [entry["name"] for entry in made_config.objectives] == ["ts_loss", "l2"]
    fields = {"l1": 0.2, "l2": 0.1, "alpha": 10.0, "decay": 0.0}
    assert made_config.objectives[0] == objective("ts_loss", share=None, **fields)
    assert softprompt.tsloss(P, l1=0.2).objectives == [objective("ts_loss", share=0.3, **fields)]
    plain, shaped = (
        get_peft_model(backbone(LLAMA, "causal_lm"), config(name, "causal_lm")) for name in ("prompt_tuning", "tsloss")
    )
    rows = [model.base_model.state.active_prompt().embedding for model in (plain, shaped)]
    assert np.array_equal(*(row.detach().numpy() for row in rows))
