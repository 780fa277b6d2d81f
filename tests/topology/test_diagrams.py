"""What diagrams say: metrics, entropy, curves and distances, by hand and against GUDHI."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from house.clouds import draw
from softprompt import SoftPromptError
from softprompt.topology import (
    Persistence,
    bottleneck,
    metrics,
    persistence,
    persistent_entropy,
    wasserstein,
)

EMPTY = torch.zeros(0, 2, dtype=torch.float64)


SEEDS = st.integers(0, 10**6)


# ---------------------------------------------------------------------- refusals


def test_refusals_of_diagrams():
    bars = torch.tensor([[0.0, 1.0]])
    with pytest.raises(SoftPromptError, match=r"degree must be 0 .* got 2"):
        persistence(draw(4, 3)).lifetimes(2)
    for distance in (wasserstein, bottleneck):
        with pytest.raises(SoftPromptError, match=r"finite bars; leave out those that never die"):
            distance(bars, torch.tensor([[0.0, math.inf]]))


# ---------------------------------------------------------------------- what diagrams say


def diagrams(deaths, loops):
    """A `Persistence` with these bars."""
    return Persistence(torch.tensor(deaths), *torch.tensor(loops).reshape(-1, 2).T)


def test_metrics_by_hand():
    found = metrics(diagrams([0.0, 1.0, 1.0], [[2.0, 4.0]]))
    assert found == {
        "h0_count": 2,
        "h0_mean_lifetime": 1,
        "h0_max_lifetime": 1,
        "h1_count": 1,
        "h1_mean_lifetime": 2,
        "h1_max_lifetime": 2,
        "persistent_entropy": pytest.approx(1.5 * math.log(2)),  # shares 1/4, 1/4, 1/2
    }
    assert all(type(value) is float for value in found.values())
    assert set(metrics(persistence(torch.ones(5, 3))).values()) == {0.0}
    assert set(metrics(persistence(torch.ones(1, 3))).values()) == {0.0}


def test_entropy():
    assert persistent_entropy(torch.ones(8)).item() == pytest.approx(math.log(8))
    assert persistent_entropy(torch.tensor([3.0])).item() == 0
    assert persistent_entropy(torch.zeros(0)).item() == persistent_entropy(torch.zeros(4)).item() == 0
    lifetimes = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(persistent_entropy(lifetimes), lifetimes)
    assert gradient[0] == 0
    assert torch.autograd.gradcheck(persistent_entropy, draw(5).abs().add(0.1).requires_grad_())


def bars(count, seed):
    birth, life = draw(2, count, seed=seed).abs()
    return torch.stack((birth, birth + life), 1)


PAIRS = [(0, 0), (0, 4), (3, 0), (1, 1), (5, 8), (30, 24)]


@pytest.mark.parametrize("m,n", PAIRS)
def test_distances_equal_gudhi(gudhi, m, n):
    hera = pytest.importorskip("gudhi.hera")
    first, second = bars(m, 1), bars(n, 2)
    assert bottleneck(first, second).item() == pytest.approx(
        gudhi.bottleneck_distance(first.numpy(), second.numpy(), 0.0), abs=1e-12
    )
    expected = hera.wasserstein_distance(first.numpy(), second.numpy(), 1.0, math.inf, delta=1e-9) if m + n else 0
    assert wasserstein(first, second).item() == pytest.approx(expected, rel=1e-8)


def test_distances_by_hand():
    first, second = torch.tensor([[0.0, 4.0], [1.0, 1.5]]), torch.tensor([[0.5, 4.0]])
    assert bottleneck(first, second).item() == 0.5  # the short bar goes to the diagonal for 0.25
    assert wasserstein(first, second).item() == 0.75
    assert bottleneck(first, EMPTY.float()).item() == 2


@given(SEEDS, st.integers(0, 9), st.integers(0, 9))
def test_distances_are_symmetric_and_bounded(seed, m, n):
    first, second = bars(m, seed), bars(n, seed + 1)
    for distance in (wasserstein, bottleneck):
        assert distance(first, first.flip(0)).item() == 0
        assert distance(first, second).item() == pytest.approx(distance(second, first).item())
    assert bottleneck(first, second) <= wasserstein(first, second) + 1e-12


@pytest.mark.parametrize("distance", [wasserstein, bottleneck])
def test_distances_carry_gradients(distance):
    target = bars(5, 8)
    assert torch.autograd.gradcheck(lambda x: distance(x, target), bars(4, 9).requires_grad_())
    same = target.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(same, target), same)
    assert (gradient == 0).all()
